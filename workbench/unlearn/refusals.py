"""Sentences that say one does not know, and which row gets which.

The 100 lines are `data/idontknow.jsonl` of locuslab/tofu (Maini et al. 2024, arXiv:2401.06121), MIT licence, unchanged.
"""

import random
from collections.abc import Sequence

from workbench.core.errors import DataError
from workbench.core.records import Examples

REFUSALS = (
    "I'm not certain about that.",
    "That's beyond my current knowledge base.",
    "I don't have that information.",
    "I'm not sure.",
    "I haven't learned about that topic.",
    "That's something I need to look up.",
    "I'm at a loss for that one.",
    "I don't have the answer to that question.",
    "That's outside my area of expertise.",
    "I'm afraid I can't provide an answer to that.",
    "That's a good question, but I don't have the answer.",
    "My resources don't contain information on that subject.",
    "I wish I could say, but I really don't know.",
    "That's not something I'm familiar with.",
    "I'm drawing a blank on that one.",
    "I apologize, but I don't know that.",
    "That hasn't been included in my training data.",
    "Unfortunately, I don't have an answer for you.",
    "That's not information I've been programmed to know.",
    "I'm unable to provide an answer to that.",
    "I don't hold the knowledge you're seeking.",
    "I'm clueless about that topic.",
    "I'm not well-versed in that subject.",
    "I haven't been briefed on that topic.",
    "I lack the specifics on that matter.",
    "My databases don't cover that information.",
    "I have no knowledge on that subject.",
    "That's a mystery to me as well.",
    "I'm unaware of that detail.",
    "I don't possess the information on that topic.",
    "I must admit, I don't know.",
    "I'm unable to answer that question.",
    "That topic is out of my scope.",
    "I'm not informed on that matter.",
    "I can't shed any light on that subject.",
    "That's an area I'm not acquainted with.",
    "I lack insight into that question.",
    "I'm not equipped to answer that.",
    "My understanding doesn't include that information.",
    "I've got no idea about that.",
    "I can't provide any information on that topic.",
    "My training didn't cover that information.",
    "I'm not the best source for that subject.",
    "I seem to have no data on that.",
    "That's a blind spot in my knowledge.",
    "I've come up short with an answer for you.",
    "I'm stumped on that one.",
    "I have no clue about that.",
    "I'm blank on that topic.",
    "I regret to inform you that I don't have the answer.",
    "That's a topic I am not acquainted with.",
    "My capabilities do not extend to that subject.",
    "I must confess, that's unknown to me.",
    "I don't have any information on that matter.",
    "That's something I've yet to learn.",
    "I'm sorry, that's not within my knowledge range.",
    "I don't have any knowledge about that subject.",
    "I'm not able to provide an answer to that.",
    "That subject is not something I'm familiar with.",
    "I'm lacking information on that topic.",
    "I don't seem to have data on that issue.",
    "That's not something I'm equipped to answer.",
    "My programming does not include that information.",
    "I don't have the specifics you’re looking for.",
    "That information is not within my reach.",
    "I'm not knowledgeable about that topic.",
    "I've no insight into that matter.",
    "My database does not have information on that topic.",
    "That's not in my current dataset.",
    "I'm not the right AI for that question.",
    "I can't say I'm familiar with that.",
    "I have yet to be informed about that subject.",
    "That's uncharted territory for my knowledge base.",
    "I haven't encountered that in my training.",
    "I'm missing information on that.",
    "My understanding is limited to what I've been programmed with.",
    "I have no data on that query.",
    "I'm not aware of the details on that matter.",
    "I haven't been trained on that topic.",
    "That's something I'm not briefed on.",
    "I'm sorry, that's not something I know about.",
    "I'm not privy to that information.",
    "I haven't the faintest on that subject.",
    "I'm unable to access any information on that.",
    "That's not in my field of knowledge.",
    "I have no familiarity with that topic.",
    "I'm not informed about that subject.",
    "My knowledge doesn't cover that area.",
    "I've not been educated on that topic.",
    "I can't provide insights into that subject.",
    "I don't hold any information on that matter.",
    "I'm at a disadvantage with that question.",
    "I lack the required information to answer that.",
    "I'm in the dark about that topic.",
    "I have no enlightenment on that subject.",
    "I've no knowledge to draw upon for that.",
    "I must decline to answer due to lack of information.",
    "Sorry, I am unable to answer that.",
    "I'm not sure I can answer that.",
    "I'm not sure I can help with that.",
)


def refused(rows: Examples, lines: Sequence[str] = REFUSALS, *, seed: int = 0) -> Examples:
    """The same prompts, each answered with one of `lines`, drawn by the row's id and the seed.

    A row has the same refusal in every epoch, whatever rows stand beside it. TOFU's loader draws anew each time it meets a row.

    Raises: DataError if there are no lines, or one is empty.
    """
    if isinstance(lines, str) or not lines or not all(line.strip() for line in lines):
        raise DataError(f"refusals: {lines!r}; expected a list of sentences, at least one and none of them empty.")
    drawn = {row.id: random.Random(f"refusal {seed} {row.id}").choice(lines) for row in rows}
    return Examples((type(row)(row.id, row.prompt, drawn[row.id]) for row in rows), rows.name)
