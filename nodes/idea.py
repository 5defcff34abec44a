"""Ovi Idea and Ovi Answer: what goes into a language model, and what comes out of it."""

from __future__ import annotations

from comfy_api.latest import io

from ..ovi import answer as answers
from ..ovi import idea as ideas
from ..ovi import parts, prompt
from .inputs import length_input, prompt_style_input, text_input
from .notes import show

IDEA = 'An old fisherman on a windy pier at dusk says, "The sea sounds different tonight."'


def form_input(tooltip: str) -> io.Input:
    """Return an input for what is written: a prompt or a storyboard."""
    return io.Combo.Input("form", options=list(ideas.FORMS), default=ideas.PROMPT, tooltip=tooltip)


class OviIdea(io.ComfyNode):
    """Join an idea and the instruction by which a language model writes a prompt or a storyboard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare an idea in, the text for a language model out."""
        return io.Schema(
            node_id="OviIdea",
            display_name="Ovi Idea",
            category="Ovi/conditioning",
            description="Joins an idea and the instruction by which a language model, such as that of 'Generate Text', "
            "writes a prompt or a storyboard. 'Ovi Answer' reads what the model writes.",
            search_aliases=["ovi llm", "ovi prompt enhance", "ovi instruction", "ovi system prompt", "text generate"],
            inputs=[
                text_input(
                    "idea",
                    IDEA,
                    "What the clip is about, in any language and in a few words or a paragraph. Words in quotation "
                    "marks are to be spoken as they are.",
                ),
                form_input("'prompt' asks for one clip, 'storyboard' for the shots of 'Ovi Storyboard'."),
                prompt_style_input(list(parts.STYLES)),
                length_input(
                    1,
                    "Length of the clip, or of each shot, in frames at 24 per second: the instruction allows as many "
                    "spoken words as fit.",
                ),
            ],
            outputs=[
                io.String.Output("request", display_name="request", tooltip="Connect to prompt of 'Generate Text'.")
            ],
        )

    @classmethod
    def execute(cls, idea: str, form: str, prompt_style: str, length: int) -> io.NodeOutput:
        """Return the instruction with the idea."""
        return io.NodeOutput(ideas.request(idea, form, prompt_style, length))


class OviAnswer(io.ComfyNode):
    """Read what a language model wrote as a prompt or a storyboard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the text of a language model in, a prompt or a storyboard out."""
        return io.Schema(
            node_id="OviAnswer",
            display_name="Ovi Answer",
            category="Ovi/conditioning",
            description="Reads the answer of a language model to 'Ovi Idea' as a prompt or a storyboard: repairs its "
            "form, and shows what was changed, left out or may be speech that is not spoken.",
            search_aliases=["ovi llm", "ovi prompt from text", "ovi parse", "text generate"],
            inputs=[
                io.String.Input(
                    "answer",
                    multiline=True,
                    default="",
                    tooltip="From 'Generate Text', or pasted from another model.",
                ),
                form_input("What the answer holds: the same as in 'Ovi Idea'."),
                prompt_style_input(list(parts.STYLES)),
                length_input(1, "Length of the clip in frames at 24 per second, to check that the speech fits."),
            ],
            outputs=[
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    tooltip="Connect to 'Ovi Text Encode', or a storyboard to shots of 'Ovi Storyboard'.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, answer: str, form: str, prompt_style: str, length: int) -> io.NodeOutput:
        """Return the prompt or storyboard, and show how it was read."""
        text, changes, doubts = answers.read(answer, form, prompt_style)
        first = prompt.speech_note(text, length) if form == ideas.PROMPT else answers.shots_note(text)
        return io.NodeOutput(text, ui=show(cls, (first, *doubts, *changes)))
