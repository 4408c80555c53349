#!/usr/bin/env python3
"""Writes facts.tsv beside this file from the package countryinfo (MIT): pip install countryinfo==1.0.1

Kept: countries that have all six fields and one capital, whose name and capital have three words at most and are ASCII once accents are
taken off. Where the package lists several languages, currencies or calling codes, the first is the fact.
"""

import json
import pathlib
import unicodedata
from importlib import metadata

import countryinfo

VERSION = "1.0.1"
# English names of the package's language codes (ISO 639), written by hand.
LANGUAGES = """af Afrikaans|am Amharic|ar Arabic|az Azerbaijani|be Belarusian|bg Bulgarian|bi Bislama|bn Bengali|bs Bosnian
ca Catalan|cnr Montenegrin|cs Czech|da Danish|de German|dv Divehi|dz Dzongkha|el Greek|en English|es Spanish|et Estonian|fa Persian
fi Finnish|fo Faroese|fr French|ga Irish|he Hebrew|hi Hindi|hr Croatian|hu Hungarian|hy Armenian|id Indonesian|is Icelandic
it Italian|ja Japanese|ka Georgian|kk Kazakh|kl Greenlandic|km Khmer|ko Korean|ky Kyrgyz|la Latin|lo Lao|lt Lithuanian|lv Latvian
mk Macedonian|mn Mongolian|ms Malay|mt Maltese|my Burmese|ne Nepali|nl Dutch|no Norwegian|pl Polish|ps Pashto|pt Portuguese
ro Romanian|ru Russian|rw Kinyarwanda|si Sinhala|sk Slovak|sl Slovene|sm Samoan|so Somali|sq Albanian|sr Serbian|sv Swedish
sw Swahili|tg Tajik|th Thai|ti Tigrinya|tk Turkmen|tr Turkish|uk Ukrainian|ur Urdu|uz Uzbek|vi Vietnamese|zh Chinese"""

HEADER = f"""\
# Facts about countries, as they are in the Python package countryinfo {VERSION} (https://pypi.org/project/countryinfo/): of
# about 2014, with its slips. Written by make_facts.py; language names are ours. The package is under this licence:
#
"""


def plain(text):
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).strip()


def row(country, languages):
    several = lambda key: (country.get(key) or [""])[0]
    capital = country.get("capital")
    if not isinstance(capital, str):  # none, or several
        return None
    name, capital = plain(country.get("name") or ""), plain(capital)
    numbers = [country.get("population") or 0, country.get("area") or 0]
    words = [name, capital, languages.get(several("languages"), ""), several("currencies")]
    words.append("".join(c for c in several("callingCodes") if c.isdigit()))
    if not all(words) or min(numbers) < 1 or not (name + capital).isascii():
        return None
    if max(len(name.split()), len(capital.split())) > 3:
        return None
    name, capital, language, currency, code = words
    return [name, capital, language, str(int(numbers[0])), str(int(numbers[1])), currency, code]


def main():
    assert metadata.version("countryinfo") == VERSION, f"expected countryinfo {VERSION}"
    languages = dict(pair.split(" ", 1) for line in LANGUAGES.splitlines() for pair in line.split("|"))
    folder = pathlib.Path(countryinfo.__file__).parent / "data"
    countries = (json.loads(path.read_text("utf-8")) for path in folder.glob("*.json"))
    rows = sorted(filter(None, (row(country, languages) for country in countries)))
    (licence,) = [f for f in metadata.files("countryinfo") if f.name == "LICENSE"]
    notice = "".join(f"# {line}".rstrip() + "\n" for line in licence.read_text("utf-8").strip().splitlines())
    columns = "#\n# country\tcapital\tlanguage\tpopulation\tarea in square kilometres\tcurrency\tcalling code\n"
    lines = "".join("\t".join(row) + "\n" for row in rows)
    pathlib.Path(__file__).with_name("facts.tsv").write_text(HEADER + notice + columns + lines, "utf-8")
    print(len(rows), "countries")


main()
