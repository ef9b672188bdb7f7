"""The pages in Chinese say what those in English say, block by block."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

TWINS = {"README.md": "README.zh-CN.md", "docs/story.md": "docs/zh/story.md"}
OTHER = TWINS | {chinese: english for english, chinese in TWINS.items()}
# Words within formulas.
WORDS = {
    r"\text{so}": r"\text{故}",
    r"\text{ new.}": r"\text{（新抽取）。}",
    r"\text{a step of Euler's method on}": r"\text{即用欧拉法走一步，方程为}",
}
HAN = "[\u4e00-\u9fff]"
BLOCK = re.compile(r"^```.*?^```$|^\$\$$.*?^\$\$$|\S.*?(?=\n\n|\n*\Z)", re.M | re.S)
LINK = re.compile(r"(?<=\])\(([^)]+)\)")


def blocks(page):
    """Returns code, formulas, headings, figures and paragraphs, in their order."""
    text = re.sub(r"<!--.*?-->\n*", "", Path(page).read_text("utf-8"), flags=re.S)
    text = re.sub(r"^\[(?:English|中文)\]\(.+\)\n\n", "", text, count=1, flags=re.M)
    return BLOCK.findall(text)


def kind(block):
    first = block.split()[0]
    known = re.match(r"#+|```\w*|\$\$|!\[|\||-", first)
    return known[0] if known else "prose"


def target(page, link):
    """Returns where a link leads, from the root of the repository."""
    path, mark, anchor = link.partition("#")
    if "://" not in path:
        path = os.path.normpath(os.path.join(os.path.dirname(page), path))
    return path + mark + anchor


def content(page, block):
    """Returns what is the same in each language."""
    if block.startswith("```"):
        return re.sub(r"(?<=\S)  # .*", "", block)
    if block.startswith("$$"):
        return " ".join(block.split())
    formulas = re.findall(r"\$[^$\n]+\$", block)
    code = [" ".join(span.split()) for span in re.findall(r"`[^`]+`", block)]
    links = [target(page, link) for link in LINK.findall(block)]
    text = LINK.sub("", re.sub(r"\$[^$\n]+\$|`[^`]+`", "", block))
    numbers = re.findall(r"−?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    lines = block.count("\n") if block.startswith("|") else 0
    return dict(
        formulas=Counter(formulas),
        code=Counter(code),
        links=Counter(links),
        numbers=Counter(numbers),
        rows=(lines, block.count("\n- ")),
    )


@pytest.mark.parametrize("english, chinese", TWINS.items())
def test_the_same_is_said(english, chinese):
    pair = blocks(english), blocks(chinese)
    assert len(pair[0]) > 30
    for en, zh in zip(*pair, strict=False):
        assert kind(zh) == kind(en) or (zh[0], en[0]) == (">", "*"), (en, zh)
        expected, found = content(english, en), content(chinese, zh)
        if en.startswith("$$"):
            for word, meaning in WORDS.items():
                expected = expected.replace(word, meaning)
        elif isinstance(expected, dict):
            expected["links"] = Counter(
                OTHER.get(link, link) for link in expected["links"].elements()
            )
        assert found == expected, zh
    assert len(pair[0]) == len(pair[1])


@pytest.mark.parametrize("page, other", OTHER.items())
def test_each_links_to_the_other_at_its_top(page, other):
    top = Path(page).read_text("utf-8").partition("\n## ")[0]
    name = "中文" if other in TWINS.values() else "English"
    links = re.findall(rf"^\[{name}\]\((.+)\)$", top, re.M)
    assert [target(page, link) for link in links] == [other]


@pytest.mark.parametrize("page", TWINS.values())
def test_it_is_set_as_chinese_is(page):
    for block in blocks(page):
        if block.startswith(("```", "$$")):
            continue
        # GitHub reads $ as a formula's beginning only after a space, and as its end
        # only before what is no letter; a line's end is a space.
        for found in re.finditer(r"(.?)\$[^$\n]+\$(.?)", block):
            assert not found[1].strip() and not re.match(r"\w", found[2]), found[0]
        assert not re.search(rf"{HAN}\n(> )?{HAN}", block), block
        # **…** next to a letter is bold only if a letter is its last sign.
        for found in re.finditer(r"\*\*([^*]+)\*\*(.?)", block, re.S):
            assert re.match(r"\w", found[1][-1]) or not found[2].strip(), found[0]
        plain = LINK.sub("", re.sub(r"\$[^$\n]+\$|`[^`\n]+`|^#+ \d\.", "x", block))
        assert not re.search(rf"{HAN} ?[,.;:?!()]|[,.;:?!()] ?{HAN}", plain), block
        assert not re.search(rf"{HAN}[A-Za-z0-9]|[A-Za-z0-9]{HAN}", plain), block
