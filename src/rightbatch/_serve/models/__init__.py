"""What is served: models made from functions, torch modules, files and integrations.

protocol   the `Model` protocol, the image type      open       a spec to a `Model`
adapters   a function or a torch module as a model   results    checks, grouping and JSON of results
memory     the largest batch within a memory limit
onnx_providers   devices and the providers of ONNX Runtime
"""
