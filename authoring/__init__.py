"""Tools that generate shipped files, and the demo. Each is a nox session, run as `python -m authoring.NAME`.

workflows    workflows/*.json and subgraphs/*.json, laid out from the prompts in workflows/api/
locales      locales/en/nodeDefs.json, from the nodes' schemas
thumbnails   workflows/*.jpg, for ComfyUI's Templates dialog
pictures     docs/*.png, screenshots of the workflows
demo         two clips in output/
"""
