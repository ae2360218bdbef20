"""docs/config.md is what the config classes say."""

from pathlib import Path

from flows.reference import reference


def test_the_page_of_fields_is_current():
    page = Path(__file__).resolve().parent.parent.parent / "docs" / "config.md"
    assert page.read_text() == reference(), "run `python -m flows.reference > docs/config.md`"
