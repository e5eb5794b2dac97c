"""ComfyUI's entry to the pack: the node list and the folder with the page's files; nothing else."""

try:
    import folder_paths  # noqa: F401
except ModuleNotFoundError:
    pass  # imported by a test runner or a packaging tool: there is no ComfyUI to register with
else:
    from .nodes import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
