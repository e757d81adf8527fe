"""Documents of every kind are read back, and what cannot be read is named, with the others going on."""

import io
import os
import zipfile

import docx
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Paragraph, SimpleDocTemplate

from lupi_trainer.documents.blocks import sections
from lupi_trainer.documents.convert import Unreadable, convert
from lupi_trainer.documents.read import Document, LeftOut, read_folder


SENTENCES = ("Trains at Kestrel are booked by Dr. Ilse Varga.", "Flights need the word of your lead.")


def pdf(*paragraphs: str, password: str | None = None, rectangle: bool = False) -> bytes:
    out = io.BytesIO()
    if rectangle:  # what a scan is, as far as text goes
        canvas = Canvas(out)
        canvas.rect(9, 9, 99, 99, fill=1)
        canvas.save()
        return out.getvalue()
    style = getSampleStyleSheet()["Normal"]
    lock = {"encrypt": StandardEncryption(password)} if password else {}
    SimpleDocTemplate(out, **lock).build([Paragraph(text, style) for text in paragraphs])
    return out.getvalue()


def word(change=lambda document: None) -> bytes:
    document = docx.Document()
    document.add_heading("Travel", 1)
    document.add_paragraph(" ".join(SENTENCES))
    document.add_heading("Leave", 2)
    table = document.add_table(2, 2)
    for cell, text in zip((cell for row in table.rows for cell in row.cells), ("years", "days", "1", "31")):
        cell.text = text
    change(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_every_kind_is_read_back(tmp_path):
    page = f"<html><head><title>T</title><script>no()</script></head><body><h1>Travel</h1><p>{' '.join(SENTENCES)}</p>"
    files = {
        "a.md": f"# Travel\n{' '.join(SENTENCES)}\n".encode(),
        "b.txt": "\r\n".join(SENTENCES).encode("utf-16"),  # with its mark
        "c.html": page.encode(),
        "d.htm": "<meta charset='euc-kr'><p>바도의 수도는 쿠주입니다.</p>".encode("euc-kr"),
        "e.pdf": pdf(*SENTENCES),
        "f.docx": word(),
        "sub/g.MD": b"\xef\xbb\xbfAll.",
    }
    (tmp_path / "sub").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = read_folder(tmp_path)
    assert [one.name for one in found] == list(files) and all(isinstance(one, Document) for one in found)
    text = {one.name: one.text for one in found}
    for name in ("a.md", "b.txt", "c.html", "e.pdf", "f.docx"):
        assert all(sentence in text[name].replace("\n", " ") for sentence in SENTENCES), name
    assert (
        text["d.htm"].strip() == "바도의 수도는 쿠주입니다."
        and text["sub/g.MD"] == "All."
        and "no()" not in text["c.html"]
    )
    assert [one.language for one in found] == ["en"] * 3 + ["ko"] + ["en"] * 3
    assert {section.headings for section in sections(text["f.docx"])} == {("Travel",), ("Travel", "Leave")}
    assert "| 1 | 31 |" in text["f.docx"]


def test_a_page_break_ends_no_sentence():
    assert convert(b"Trains are\n\n\x0cbooked by Ilse.\x0cNext.", ".txt") == "Trains are\nbooked by Ilse.\n\nNext."


BROKEN = {
    "locked.pdf": (pdf(*SENTENCES, password="secret"), "it is protected by a password"),
    "scan.pdf": (pdf(rectangle=True), "there is no text in it: pictures of text are not read"),
    "cut.pdf": (pdf(*SENTENCES)[:400], "it cannot be read as .pdf"),
    "none.pdf": (b"not a pdf", "it cannot be read as .pdf"),
    "korean.txt": ("바도의 수도".encode("cp949"), "it is not UTF-8 (byte 0 is 0xb9): save it as UTF-8"),
    "zeros.md": (b"a\0b", "it holds zero bytes"),
    "odd.html": (b"<meta charset=klingon><p>x", "an encoding that is not known: 'klingon'"),
    "empty.md": (b" \n", "it is empty"),
    "blank.html": (b"<p> </p>", "there is no text in it"),
    "locked.docx": (b"\xd0\xcf\x11\xe0" + bytes(600), "it is protected by a password, or an old .doc"),
    "cut.docx": (word()[:900], "it is no .docx, or a part of one"),
    "old.doc": (b"x", ".doc is not read: save it as .docx, .pdf or .md"),
    "table.csv": (b"a,b", ".csv is not read"),
    "bare": (b"x", "a file without an ending is not read"),
}


def test_what_cannot_be_read_is_named_and_the_others_go_on(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.md").write_text("The key is 1234.")
    (folder / "out").mkdir(parents=True)
    for name, (data, _) in BROKEN.items():
        (folder / name).write_bytes(data)
    (folder / "fine.md").write_text("Fine.")
    (folder / ".hidden.md").write_text("Hidden.")
    (folder / "out" / "report.html").write_text("<p>Written here.</p>")
    with open(folder / "large.txt", "wb") as file:
        file.truncate(200_000_000)
    os.mkfifo(folder / "pipe.md")
    links = {"file.md": outside / "secret.md", "folder": outside, "same.md": folder / "fine.md", "lost.md": "nowhere"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "loop.md").symlink_to("loop.md")
    (folder / "name\udcff.md").write_text("Fine.")
    found = {one.name: one for one in read_folder(folder, folder / "out")}
    assert [name for name, one in found.items() if isinstance(one, Document)] == ["fine.md"]
    why = {name: one.why for name, one in found.items() if isinstance(one, LeftOut)}
    for name, (_, message) in BROKEN.items():
        assert message in why.pop(name), name
    assert why == {
        "large.txt": "it has 200.0 MB, more than --max_megabytes 20",
        "pipe.md": "it is no regular file",
        "file.md": "a link out of the folder, where nothing is read",
        "folder": "a link out of the folder, where nothing is read",
        "same.md": "a link to fine.md, which is read itself",
        "lost.md": "a link that leads nowhere",
        "loop.md": "a link that leads nowhere",
        "name\\udcff.md": "its name is not UTF-8",
    }


def test_a_folder_with_nothing_to_read_is_an_error_that_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no document in it can be read \(\.md, .*\.docx, .* are\)$"):
        read_folder(tmp_path)
    (tmp_path / "a.md").write_bytes(b"")
    with pytest.raises(ValueError, match="\n  a.md: it is empty"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="a.md is a file: name the folder"):
        read_folder(tmp_path / "a.md")


def test_a_document_reads_no_other_file(tmp_path):
    """A picture that is linked, an external entity, and an archive that unpacks to more than a machine has."""
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")

    def link_picture(document):
        name = document.part.relate_to(secret.as_uri(), RELATIONSHIP_TYPE.IMAGE, is_external=True)
        blip = OxmlElement("a:blip")
        blip.set(qn("r:link"), name)
        inside = blip
        for tag in ("pic:blipFill", "pic:pic", "a:graphicData", "a:graphic", "wp:inline", "w:drawing"):
            element = OxmlElement(tag)
            element.append(inside)
            inside = element
        document.paragraphs[0].add_run()._r.append(inside)

    def rewritten(change) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(word())) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, change(name, old.read(name)))
        return out.getvalue()

    linked = convert(word(link_picture), ".docx")
    assert SENTENCES[0] in linked and "SECRET" not in linked
    entity = f'<!DOCTYPE x [<!ENTITY s SYSTEM "{secret.as_uri()}">]>'.encode()
    asks = rewritten(
        lambda name, text: (
            text.replace(b"<w:document", entity + b"<w:document", 1).replace(b"Flights", b"&s;")
            if name == "word/document.xml"
            else text
        )
    )
    with pytest.raises(Unreadable, match=r"it cannot be read as .docx \((?!.*SECRET)"):
        convert(asks, ".docx")
    page = f'<p>Fine.</p><img src="{secret.as_uri()}"><iframe src="{secret.as_uri()}"></iframe>'
    assert "SECRET" not in convert(page.encode(), ".html")
    bomb = rewritten(lambda name, text: bytes(60_000_000) if name == "word/document.xml" else text)
    with pytest.raises(Unreadable, match="it would unpack from"):
        convert(bomb, ".docx")
    with pytest.raises(Unreadable, match="no word/document.xml"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a", "b")
        convert(out.getvalue(), ".docx")
