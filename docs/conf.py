"""Sphinx settings of the site. scripts/docs.sh writes its source with scripts/docs_pages.py and builds it."""

project = "DIGER"
html_title = "DIGER"
extensions = ["myst_parser"]
myst_enable_extensions = ["html_image", "strikethrough"]
myst_heading_anchors = 4  # the anchors of a code host
html_theme = "furo"  # light and dark, wide and on a phone
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # an option begins with two hyphens
highlight_language = "none"
pygments_style = "friendly"
pygments_dark_style = "monokai"
