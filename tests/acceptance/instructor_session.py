"""A session of instructor with a server: typed answers in each of its modes. Run as a script.

Base URL and key come from the environment. Prints what came of the calls as one JSON object, for `test_structured`.
Argument: the model.
"""

import json
import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field

MODEL = sys.argv[1]


class Weather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=20)
    sky: Literal["clear", "clouds", "rain"]
    degrees: int = Field(ge=-30, le=50)


class Guess(BaseModel):
    """What is known of the weather: of the mode JSON the server knows no schema."""

    city: object = None
    description: object = None


def ask(mode: instructor.Mode) -> dict[str, object]:
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    found = client.chat.completions.create(
        model=MODEL,
        response_model=Guess if mode is instructor.Mode.JSON else Weather,
        messages=[{"role": "user", "content": "How is the weather in Ulm?"}],
        max_tokens=400,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(found, Guess | Weather)
    return found.model_dump()


modes = (instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS)
sys.stdout.write(json.dumps({mode.name: ask(mode) for mode in modes}))
