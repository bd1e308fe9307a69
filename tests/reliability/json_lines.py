"""Files and folders of rows."""

import json
from functools import partial

from datasets import Dataset, DatasetDict

from rlmec_trl.data.loading import load_rows
from tests.reliability.case import Case


SECTION = "Files and folders of rows"
ROWS = [{"prompt": f"{index} + 1?", "answer": str(index + 1)} for index in range(3)]
KEPT = "each value stays as it is"
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def load(content, place, expected=None, said=None):
    rows = load_rows(place.file("rows.jsonl", content)).to_list()
    assert rows == (ROWS if expected is None else expected), rows
    return said or f"{len(rows)} rows"


def refuse(name, content, error, varies=None):
    return Case(name, partial(load, content), error, varies)


def late(early, value, said):
    """A column that changes its type after 1,100 rows."""

    def run(place):
        rows = [{"own": early}] * 1100 + [{"own": value}]
        loaded = load_rows(place.file("rows.jsonl", rows))["own"]
        assert (loaded[0], loaded[-1]) == (early, value)
        assert said != KEPT or type(loaded[0]) is type(early)
        return said

    return run


def keep(value):
    def run(place):
        assert load_rows(place.file("rows.jsonl", [{"own": value}]))["own"][0] == value
        return "the value is kept"

    return run


def read_nan(place):
    first, second = load_rows(place.file("rows.jsonl", '{"own": NaN}\n{"own": -Infinity}\n'))["own"]
    assert first != first and second == float("-inf")
    return "floats, which the checks of each column judge"


def read_huge(place):
    loaded = load_rows(place.file("rows.jsonl", '{"own": 123456789012345678901234567890}\n'))
    assert loaded["own"][0] == "123456789012345678901234567890"
    return "the integer as text"


def a_file(name, content=b"prompt\n1?\n"):
    return lambda place: load_rows(place.file(name, content))


def a_dataset(change, split="train"):
    def run(place):
        Dataset.from_list(ROWS).save_to_disk(place.path("rows"))
        change(place.folder / "rows")
        return load_rows(place.path("rows"), split)

    return run


def truncate(folder):
    (data,) = folder.glob("*.arrow")
    data.write_bytes(data.read_bytes()[:-200])


def empty_it(folder):
    next(folder.glob("*.arrow")).write_bytes(b"")


def a_split(split):
    def run(place):
        DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(place.path("all"))
        rows = load_rows(place.path("all"), split)
        assert len(rows) == {"train": 3, "test": 1}[split]
        return f"the rows of `{split}`"

    return run


def no_rows(place):
    Dataset.from_list(ROWS).select([]).save_to_disk(place.path("rows"))
    load_rows(place.path("rows"))


def a_link(place):
    Dataset.from_list(ROWS).save_to_disk(place.path("rows"))
    (place.folder / "link").symlink_to(place.folder / "rows")
    assert load_rows(place.path("link")).to_list() == ROWS


NOT_JSON = "which is not JSON"
READER = r"(?<=cannot be read \().*(?=\): it was changed)"
CASES = [
    refuse("a file of 0 bytes", b"", "has no rows"),
    refuse("only line breaks", "\n\n\n", "has no rows"),
    refuse("an empty array, `[]`", "[]", "has no rows"),
    refuse("an empty object, `{}`", "{}\n", "has no rows"),
    refuse("a line that is cut off", LINES + '{"prompt": "4', f"line 4: .*{NOT_JSON}"),
    refuse(
        "a value that is missing, in the second of 4 lines",
        LINES.replace("}\n", '}\n{"a":\n', 1),
        f"line 2: .*{NOT_JSON}",
    ),
    refuse("a comma at the end of an object", '{"a": 1,}\n', f"line 1: .*{NOT_JSON}", r"(?<=JSON \().*(?=, at)"),
    refuse("single quotes", "{'a': 1}\n", f"line 1: .*{NOT_JSON}"),
    refuse("two objects on a line", '{"a": 1} {"a": 2}\n', f"line 1: .*{NOT_JSON}"),
    refuse("text", "hello\n", f"line 1: .*{NOT_JSON}"),
    refuse("CSV under the name of JSON lines", "prompt,answer\n1?,2\n", f"line 1: .*{NOT_JSON}"),
    refuse("an array that is cut off", json.dumps(ROWS)[:-5], f"line 1: .*{NOT_JSON}"),
    refuse("an array with a broken third line", '[{"a": 1},\n{"a": 2},\n{"a" 3}]', f"line 3: .*{NOT_JSON}"),
    refuse("a line that is `null`", LINES + "null\n", "line 4: found None, which is not an object"),
    refuse("a line that is a number", "5\n", "line 1: found 5, which is not an object"),
    refuse("a line that is a text", '"a"\n', "which is not an object"),
    refuse("an array of numbers", "[1, 2]", "entry 0 of its array: found 1, which is not an object"),
    refuse("a lone surrogate, written `\\ud800`", LINES + '{"prompt": "\\ud800"}\n', "line 4: found a lone surrogate"),
    refuse(
        "Latin-1 instead of UTF-8", '{"prompt": "é"}\n'.encode("latin-1"), "line 1: found bytes that are not UTF-8"
    ),
    refuse("UTF-16", LINES.encode("utf-16"), "line 1: found bytes that are not UTF-8"),
    refuse("a NUL byte inside a text", b'{"prompt": "a\0"}\n', "line 1: .*control character"),
    refuse("a file of NUL bytes", b"\0" * 20, f"line 1: .*{NOT_JSON}"),
    refuse("a tab inside a text", '{"prompt": "a\tb"}\n', "line 1: .*control character"),
    refuse("a key twice", '{"prompt": "a", "prompt": "b"}\n', "line 1: the key 'prompt' appears twice"),
    refuse("100,000 nested lists", '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}\n", "nested too deeply"),
    refuse(
        "an integer of 5,000 digits", '{"a": ' + "1" * 5000 + "}\n", "line 1: Exceeds", r"Exceeds.*?conversion[^.]*"
    ),
    refuse("Parquet under the name of JSON lines", b"PAR1\x15\x04\x15", f"line 1: .*{NOT_JSON}"),
    Case("a byte order mark", partial(load, "\ufeff" + LINES)),
    Case("line ends of Windows", partial(load, LINES.replace("\n", "\r\n"))),
    Case("line ends of old Macs", partial(load, LINES.replace("\n", "\r"))),
    Case("no line break at the end", partial(load, LINES.rstrip("\n"))),
    Case("blank lines", partial(load, "\n" + LINES.replace("\n", "\n\n"))),
    Case("one array, indented", partial(load, json.dumps(ROWS, indent=2))),
    Case("`NaN` and `-Infinity`", read_nan),
    Case("an integer over 64 bits", read_huge),
    Case("`\\u0000` in a text", keep("a\0b")),
    Case("100,000 characters", keep("x" * 100_000)),
    Case(
        "a surrogate pair, `\\ud83d\\ude00`",
        partial(load, '{"own": "\\ud83d\\ude00"}', expected=[{"own": "\U0001f600"}]),
    ),
    Case("right-to-left text and its marks", keep("\u05e9\u05dc\u05d5\u05dd \u202e\u0627\u202c")),
    Case("a line separator (U+2028) in a text", keep("a\u2028b\u2029c\x85d")),
    Case("200 nested lists and objects", keep(json.loads('[{"a": ' * 100 + "1" + "}]" * 100))),
    Case("a date as text", keep("2024-01-01")),
    Case("`null` in the first 1,100 rows, then texts", late(None, "a", "a column of texts")),
    Case("`null` in the first 1,100 rows, then lists", late(None, [1], "a column of lists")),
    Case("`null` in the first 1,100 rows, then messages", late(None, [{"role": "user", "content": "a"}], "messages")),
    Case("integers in the first 1,100 rows, then floats", late(1, 1.5, "a column of floats")),
    Case("texts in the first 1,100 rows, then lists", late("a", ["b"], KEPT)),
    Case("integers in the first 1,100 rows, then texts", late(1, "a", KEPT)),
    Case("texts of digits in the first 1,100 rows, then integers", late("2", 2, KEPT)),
    Case("True in the first 1,100 rows, then 1", late(True, 1, KEPT)),
    Case("a link to a dataset", a_link),
    Case("split `test` of a saved `DatasetDict`", a_split("test")),
    Case("a split that a saved `DatasetDict` does not have", a_split("validation"), "has no split 'validation'"),
    Case("a dataset saved without rows", no_rows, "has no rows"),
    Case("an Arrow file that is truncated", a_dataset(truncate), "cannot be read .*Write it again", READER),
    Case("an Arrow file of 0 bytes", a_dataset(empty_it), "cannot be read .*Write it again", READER),
    Case(
        "a dataset without its Arrow file",
        a_dataset(lambda folder: next(folder.glob("*.arrow")).unlink()),
        "cannot be read .*Write it again",
        READER,
    ),
    Case(
        "a `state.json` that is cut off",
        a_dataset(lambda folder: (folder / "state.json").write_text("{")),
        "cannot be read .*Write it again",
        READER,
    ),
    Case(
        "a folder without `state.json`",
        a_dataset(lambda folder: (folder / "state.json").unlink()),
        "not a folder that `save_to_disk` wrote",
    ),
    Case("an empty folder", lambda place: load_rows(str(place.folder)), "it is empty"),
    Case("a CSV file", a_file("rows.csv"), "name does not end with .json or .jsonl"),
    Case("a truncated Parquet file", a_file("rows.parquet", b"PAR1"), "name does not end with .json or .jsonl"),
    Case("a compressed file", a_file("rows.jsonl.gz", b"\x1f\x8b"), "name does not end with .json or .jsonl"),
    Case("a file that is not there", lambda place: load_rows("runs/nothing.jsonl"), "There is no file or folder"),
    Case("a folder that is not there", lambda place: load_rows("runs/no/folder"), "There is no file or folder"),
    Case("an empty name", lambda place: load_rows(""), "There is no file or folder ''"),
    Case(
        "a name on the Hub, offline",
        lambda place: load_rows("openai/gsm8k"),
        "cannot be loaded from the Hub",
        r"(?<=from the Hub: ).*",
    ),
    Case(
        "a name of 5,000 characters",
        lambda place: load_rows("a" * 5000),
        "cannot be loaded from the Hub",
        r"a{20,}|(?<=from the Hub: ).*",
    ),
    Case("`max_rows` of 0", lambda place: load_rows(place.file("rows.jsonl", ROWS), max_rows=0), "at least 1"),
]
