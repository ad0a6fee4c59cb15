"""Formulas of notebooks as MathML, which browsers draw by themselves: nothing is fetched when a page is read."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
LOADER = re.compile(r"<script[^>]*>(?:(?!</script>).)*mathjax(?:(?!</script>).)*</script>", re.DOTALL | re.IGNORECASE)


CODE = re.compile(r'<(script|style|pre|code)\b.*?</\1>|<div class="clipboard-copy-txt".*?</div>', re.DOTALL)
RAW = re.compile(r"\$[^$\n]+\$|\\[(\[]")


def on_post_page(output, page, config):
    def formula(match):
        return convert(html.unescape(match[3]), display="inline" if match[2] == "(" else "block")

    output = LOADER.sub("", FORMULA.sub(formula, output))
    text = html.unescape(re.sub(r"<[^>]+>", "", CODE.sub("", output)))
    if raw := RAW.search(text):
        raise PluginError(f"{page.file.src_path}: a formula that is shown as it is written, {raw[0]}")
    return output
