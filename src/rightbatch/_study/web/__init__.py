"""The page of a study, and the report in one file.

commands    `rightbatch ui`, the server        report, bundle    one HTML file
app         the routes                         documents         the JSON that the page draws
template    its HTML, and Plotly's script      static/           the page's scripts and styles
"""
