"""`check`: whether a change still fits on a GPU, against a budget that is kept in a file.

options   what `check` takes        budget   the file, and what changed against it
check     the verb                  result   the answer, as text, JSON and Markdown
"""
