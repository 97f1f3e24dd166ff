"""Analysis of a study's runs.

grouping, by_size                       runs by batch size, and each size's figures
steps_to_target, critical_batch_size    when a run reached the target, and the fit of all
summary, sentences                      the answer in words
bands, colors, figures, document        what notebooks and the page show
"""
