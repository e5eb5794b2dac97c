"""Logs what loading each pack after this one costs: CPU time, so that other work does not count, and what it imports."""

import json
import logging
import sys
import time

import nodes

load_custom_node = nodes.load_custom_node


async def watched(module_path, *arguments, **options):
    modules, before = set(sys.modules), time.process_time()
    try:
        return await load_custom_node(module_path, *arguments, **options)
    finally:
        seen = {
            "pack": module_path,
            "milliseconds": round(1000 * (time.process_time() - before), 1),
            "imported": sorted(set(sys.modules) - modules),
            "on the path": [folder for folder in sys.path if folder.startswith(module_path)],
        }
        logging.info("stopwatch: %s", json.dumps(seen))


nodes.load_custom_node = watched
NODE_CLASS_MAPPINGS = {}
