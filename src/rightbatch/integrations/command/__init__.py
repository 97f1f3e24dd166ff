"""Any command, unchanged: the parent of the agents in its Python processes.

command       `Command`, a `Training` whose trials are runs of a command line
template      its placeholders, such as `{batch}`
trial, watch  a run that is ended after some steps; a run that is only observed
launch        the environment that brings the agent into every Python process
listener      the agents' messages
observed      what they have reported, by process
process_tree  all processes of a command, and their end
site/         the agent; `sitecustomize.py` is what Python finds
"""
