"""The nodes in seven languages: every text is there, none is left behind, and numbers and names stay what they are."""

from __future__ import annotations

import json
import re

import pytest

from authoring.locales import LOCALES

LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es")
TRANSLATIONS = LANGUAGES[1:]

NUMBER = re.compile(r"\d+(?:\.\d+)?")
NAME = re.compile(
    r"<\w+>"  # <S>
    r"|[A-Za-z0-9-]+(?:[./_][A-Za-z0-9-]+)+"  # models/vae, model.safetensors, dpmpp_2m
    r"|\b\w*[A-Z]\w*[A-Z]\w*?(?=s?\b)"  # CLIPLoader, LoRAs
    r"|\bOvi\b|\bWan\b"
)
QUOTED = re.compile(r"(?<!\w)'([^']+)'(?!\w)")  # 'Create Video', 'default'
MEANT = {"speaker: words", "name: description"}  # quoted for what it means


def texts(language):
    """The texts of a language by their keys, such as ("OviDecode", "inputs", "fps", "tooltip")."""
    found = {}

    def walk(entry, *keys):
        if isinstance(entry, str):
            found[keys] = entry
        else:
            for key, below in entry.items():
                walk(below, *keys, key)

    walk(json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")))
    return found


ENGLISH = texts("en")
SENTENCES = [keys for keys in ENGLISH if keys[-1] in ("description", "tooltip")]
TITLES = {keys[0]: text for keys, text in ENGLISH.items() if keys[1] == "display_name"}


def test_every_folder_is_a_language():
    assert {folder.name for folder in LOCALES.iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_every_text_is_translated(language):
    translated = texts(language)
    assert list(translated) == list(ENGLISH)
    assert all(translated.values())
    assert not [keys for keys in SENTENCES if translated[keys] == ENGLISH[keys]]


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translations_keep_numbers_and_names(language):
    """Nodes and inputs of this pack go by their translated names, whatever else has a name by its own."""
    translated = texts(language)
    lost = {}
    for keys in SENTENCES:
        text, other = ENGLISH[keys], translated[keys]
        ours = {title: translated[node, "display_name"] for node, title in TITLES.items()}
        ours |= {
            key[2]: name for key, name in translated.items() if key[:2] == (keys[0], "inputs") and key[3] == "name"
        }
        named = {*NAME.findall(text), *QUOTED.findall(text), *(title for title in TITLES.values() if title in text)}
        lost[keys] = {name for name in named - MEANT if ours.get(name, name) not in other}
        if sorted(NUMBER.findall(text)) != sorted(NUMBER.findall(other)):
            lost[keys].add("the numbers")
    assert not {keys: names for keys, names in lost.items() if names}


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_hold_none_of_the_frontend_s_syntax(language):
    """The frontend compiles all but tooltips as messages of vue-i18n, where these characters mean something."""
    compiled = {keys: text for keys, text in texts(language).items() if keys[-1] != "tooltip"}
    assert not {keys for keys, text in compiled.items() if re.search("[@{}|%]", text)}
