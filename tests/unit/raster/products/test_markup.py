"""Metadata is read without trust."""

from pathlib import Path

import pytest

from ringmoe.raster import markup
from ringmoe.raster.markup import Document, groups, inside
from ringmoe.raster.scene import UnusableError

BOMB = '<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
OUTWARD = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a>&b;</a>'


@pytest.mark.parametrize("content", [BOMB, OUTWARD, "<!DOCTYPE a><a/>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_entities_are_refused(content: str, encoding: str, tmp_path: Path):
    path = tmp_path / "x.xml"
    path.write_bytes(content.encode(encoding))
    with pytest.raises(UnusableError, match=r"x\.xml declares a document type or entities"):
        Document.load(path)
    with pytest.raises(UnusableError, match="declares"):
        groups(path)


def test_names_without_prefix_and_words(tmp_path: Path):
    path = tmp_path / "x.xml"
    path.write_text("<?xml version='1.0'?><n:a xmlns:n='u'><n:b> 1 2.5\n-3 </n:b><c/></n:a>")
    document = Document.load(path)
    assert document.numbers("b") == [1, 2.5, -3]
    with pytest.raises(UnusableError, match=r"x\.xml has no c"):
        document.text("c")


@pytest.mark.parametrize("content", ["", "<a>", "text", "<a><b></a>", "<a>\x00</a>", "<a>&unknown;</a>", "<a>inf</a>"])
def test_damaged(content: str, tmp_path: Path):
    path = tmp_path / "x.xml"
    path.write_text(content)
    with pytest.raises(UnusableError, match=r"x\.xml(: \.)? (is|is 'inf').*(no XML|finite)"):
        Document.load(path).numbers(".")


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.xml"
    path.write_text("<a>" * 5000 + "</a>" * 5000)
    with pytest.raises(UnusableError, match="nests more than 100"):
        Document.load(path)
    monkeypatch.setattr(markup, "_MOST_BYTES", 1000)
    with pytest.raises(UnusableError, match=r"x\.xml has 35,000 bytes; expected .* at most 1,000"):
        Document.load(path)
    with pytest.raises(UnusableError, match=r"y\.xml is missing"):
        Document.load(tmp_path / "y.xml")


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../../b", "a\\..\\b", "link/x"])
def test_no_path_leads_outward(name: str, tmp_path: Path):
    (tmp_path / "product").mkdir()
    (tmp_path / "product" / "link").symlink_to(tmp_path)
    with pytest.raises(UnusableError, match="outside of the product's folder"):
        inside(tmp_path / "product", name, tmp_path / "meta.xml")
    assert inside(tmp_path / "product", "./a/b.tif", tmp_path / "meta.xml") == "a/b.tif"


@pytest.mark.parametrize("content", ["", "x", "GROUP = A\n", "[1]", '{"A": 1}', "{"])
@pytest.mark.parametrize("suffix", ["txt", "json", "xml"])
def test_groups_that_are_damaged(content: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"x.{suffix}"
    path.write_text(content)
    with pytest.raises(UnusableError, match=rf"x\.{suffix} is (damaged|cut off)"):
        groups(path)
