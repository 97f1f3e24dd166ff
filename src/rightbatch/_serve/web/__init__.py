"""HTTP: routes, metrics and the page.

http      the routes and the application      predict   an image to its result
bodies    request bodies within limits        images    decodes untrusted images
metrics   metrics for Prometheus              static/   the page; `_web/static/` has shared files
"""
