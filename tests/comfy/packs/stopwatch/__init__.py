"""Logs what loading each pack after this one costs, in CPU time: other work on the machine does not count."""

import logging
import time

import nodes

load_custom_node = nodes.load_custom_node


async def timed(module_path, *arguments, **options):
    before = time.process_time()
    try:
        return await load_custom_node(module_path, *arguments, **options)
    finally:
        logging.info("stopwatch: %.1f ms for %s", 1000 * (time.process_time() - before), module_path)


nodes.load_custom_node = timed
NODE_CLASS_MAPPINGS = {}
