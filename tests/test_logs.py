"""Log lines for people and for the journal."""

import logging
import struct

from arcsup.logs import FieldFormatter, encode, fields_of


def make_record(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("arcsup.vm", logging.WARNING, "f.py", 1, message, (), None)
    vars(record).update(fields)
    return record


def test_fields_are_what_has_an_upper_case_name() -> None:
    assert fields_of(make_record("x", VM="one", detail="no", PID=5)) == {"VM": "one", "PID": "5"}


def test_a_line_for_people_has_its_fields_behind_it() -> None:
    line = FieldFormatter().format(make_record("QEMU ended", VM="one"))

    assert line.endswith(" warning QEMU ended VM=one")


def test_the_journal_gets_priority_and_fields() -> None:
    lines = encode(make_record("QEMU ended", VM="one")).split(b"\n")

    assert b"MESSAGE=QEMU ended" in lines
    assert b"PRIORITY=4" in lines
    assert b"SYSLOG_IDENTIFIER=arcsup" in lines
    assert b"VM=one" in lines


def test_a_value_of_several_lines_carries_its_length() -> None:
    text = b"first\nsecond"

    assert b"MESSAGE\n" + struct.pack("<Q", len(text)) + text + b"\n" in encode(
        make_record(text.decode())
    )


def test_a_name_that_is_not_utf8_costs_no_line() -> None:
    assert b"FILE=odd-\\udcff.yaml\n" in encode(make_record("x", FILE="odd-\udcff.yaml"))
