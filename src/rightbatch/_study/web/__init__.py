"""The page of a study, for a browser.

app         the routes                         documents   what the page is drawn from
template    its HTML, and Plotly's script      static/     the page's scripts and sheets
"""
