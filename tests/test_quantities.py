"""Place, date, clouds and GSD of pictures: words that are understood, words that are refused, nothing guessed."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.quantities import QUANTITIES, date_of, measured, quantities_of, quantity_rows, words_of
from ccdiff_cli.scene import Scene


def scene(**provenance) -> Scene:
    return Scene("a.png", 10, 10, provenance=provenance)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"lon": "11.5", "lat": -48, "sensor": "GF-2"}, {"longitude": 11.5, "latitude": -48}),
        ({"Longitude": "-117.2", "LATITUDE ": "32.7"}, {"longitude": -117.2, "latitude": 32.7}),
        ({"cloud_cover": "25%"}, {"cloud_cover": 0.25}),
        ({"Cloud cover": 0}, {"cloud_cover": 0}),
        ({"clouds": 1}, {"cloud_cover": 1}),
        ({"date": "2014-05-31"}, {"year": 2014, "month": 5, "day": 31}),
        ({"date": "2014-05-31T10:11:12Z"}, {"year": 2014, "month": 5, "day": 31}),
        ({"acquisition date": "2014:05:31 10:11:12"}, {"year": 2014, "month": 5, "day": 31}),
        ({"date": "20140531"}, {"year": 2014, "month": 5, "day": 31}),
        ({"date": 2014}, {"year": 2014}),
        ({"date": "2014/05"}, {"year": 2014, "month": 5}),
        ({"year": "2014", "month": 5.0, "date": "2014-05-02"}, {"year": 2014, "month": 5, "day": 2}),
        ({"date": "", "lat": None, "lon": "null", "cloud": "NaN", "colour": "red", "longitudinal": 7, "dates": "x"}, {}),
    ],
)
def test_words_that_are_understood(fields, expected):
    assert measured(fields) == expected


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"lat": 95}, "lat: expected degrees north"),
        ({"lon": "200"}, "lon: expected degrees east"),
        ({"longitude": "117W"}, "longitude: expected degrees east"),
        ({"lat": math.inf}, "lat"),
        ({"lat": True}, "lat"),
        ({"cloud_cover": 25}, "a share from 0 to 1, or a percentage"),
        ({"cloud_cover": "125%"}, "a share from 0 to 1"),
        ({"month": 13}, "a month from 1 to 12"),
        ({"month": 1.5}, "a month from 1 to 12"),
        ({"month": "May"}, "a month from 1 to 12"),
        ({"year": 14}, "expected a year"),
        ({"date": "31.05.2014"}, "a date such as 2014-05-31"),
        ({"date": "2014-13-01"}, "a date such as"),
        ({"date": "2014-02-30"}, "a date such as"),
        ({"date": "0999-01-01"}, "a date such as"),
        ({"year": 2015, "month": 2, "day": 29}, "there is no 29. February 2015"),
        ({"date": "2014-05-31", "year": 2015}, "says year 2015"),
        ({"lat": 1, "latitude": 2}, "says latitude 2"),
    ],
)
def test_words_that_are_refused_with_their_place(fields, message):
    with pytest.raises(CCDiffError, match=message) as caught:
        measured(fields, where="m.csv:7")
    assert caught.value.where == "m.csv:7"


def test_a_scene_that_says_nonsense_knows_nothing_of_it():
    assert quantities_of(scene(gsd=0.5, metadata={"date": "spring", "lat": 48.1, "lon": 999})) == {"gsd": 0.5, "latitude": 48.1}
    for odd in ({"gsd": "0.5"}, {"gsd": True}, {"gsd": math.nan}, {"gsd": 0}, {"metadata": [1]}, {"metadata": None}, {}):
        assert quantities_of(scene(**odd)) == {}


def test_rows_have_their_order_and_nan_where_unknown():
    (row, empty) = quantity_rows([scene(gsd=0.3, metadata={"date": "2014-05", "lon": 1.0}), scene()])
    assert QUANTITIES == ("longitude", "latitude", "gsd", "cloud_cover", "year", "month", "day")
    assert row[0] == 1 and row[2] == 0.3 and row[4:6] == [2014, 5]
    assert [math.isnan(v) for v in row] == [False, True, False, True, False, False, True] and all(map(math.isnan, empty))


@given(st.dates(min_value=datetime.date(1800, 1, 1), max_value=datetime.date(2200, 12, 31)))
def test_a_date_comes_back(day):
    assert date_of(measured({"date": day.isoformat()})) == day.isoformat()


def test_words_for_a_caption():
    known = {"gsd": 0.146, "longitude": -117.16, "latitude": 32.71, "year": 2014, "month": 5, "day": 2, "cloud_cover": 0.25}
    assert words_of(known) == "0.15 m per pixel, at 32.7 N 117.2 W, in May 2014, 25 percent clouds"
    assert words_of({"gsd": 15.0, "year": 2001.0, "cloud_cover": 0.0, "latitude": 3.0}) == "15 m per pixel, in 2001"
    assert words_of({}) == ""
    assert date_of({"year": 2001.0, "day": 3.0}) == "2001" and date_of({"month": 3.0}) == ""
