"""Elements of XML and HTML from texts, some of which a guest wrote."""

from __future__ import annotations

from xml.etree import ElementTree as Xml


def element(tag: str, /, *children: Xml.Element | str, **attributes: str) -> Xml.Element:
    """An element with its children, and its attributes less those that are empty; ``class_`` stands for ``class``.

    Text is escaped where it is written out, and is made printable here; a style is taken as it is.
    """
    made = Xml.Element(tag, {name.rstrip("_"): printable(value) for name, value in attributes.items() if value})
    last: Xml.Element | None = None
    for child in children:
        if isinstance(child, str):
            text = child if tag == "style" else printable(child)
            if last is None:
                made.text = (made.text or "") + text
            else:
                last.tail = (last.tail or "") + text
        else:
            made.append(child)
            last = child
    return made


def printable(text: str) -> str:
    """Without the control characters and lone surrogates that neither XML 1.0 nor UTF-8 has a way to write."""
    return "".join(c if c in "\t\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
