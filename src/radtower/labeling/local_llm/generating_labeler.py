"""Label reports with a causal LM that writes JSON under a grammar. Needs the extra ``local-llm``."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
import xgrammar
from transformers import GenerationConfig, LogitsProcessorList
from xgrammar.contrib.hf import LogitsProcessor

from radtower.labeling.findings import FindingsSet, Status
from radtower.labeling.local_llm.conversation import REPORT_SLOT, encode_data, split_conversation
from radtower.labeling.local_llm.local_labeler import TOO_LONG, LocalLabeler
from radtower.labeling.local_llm.local_model import LocalModel
from radtower.labeling.parsing import LabelParseError, ParseFailure, parse_reply
from radtower.labeling.prompts import PROMPT_VERSION, delimit_report, system_prompt
from radtower.labeling.report_labels import ReportLabels

MAX_QUOTE_CHARACTERS = 300  # per finding; without a limit a weak model would quote for ever
_QUOTE_CHARACTERS = (r'[^"\\\x00-\x1f]', r'"\\\""', r'"\\\\"')  # any, a quotation mark, a backslash


class GeneratingLabeler(LocalLabeler):
    """A causal language model of this process that is asked as an endpoint is, and answers with evidence.

    The grammar leaves only tokens that keep the reply a JSON object of the schema, so that it cannot be
    malformed but for being cut at ``max_new_tokens``; it is validated all the same. The most probable token
    is taken each time. There are no scores: a generated word is not a probability.

    Args:
        path: Folder, ``.gguf`` file or Hub id of a causal language model.
        findings: The list to ask about.
        dtype: Name of a floating-point type of torch; ``"auto"`` is that of the source.
        device: Of torch; None is the GPU where there is one, else the CPU.
        batch_size: Reports that are answered at once.
        max_new_tokens: Limit of one reply; 18 findings with quotes take about 900 tokens.

    Raises:
        ValueError: If ``batch_size`` or ``max_new_tokens`` is below 1.
    """

    prompt_version: str | None = PROMPT_VERSION

    def __init__(
        self,
        path: str | os.PathLike[str],
        findings: FindingsSet,
        *,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int = 4,
        max_new_tokens: int = 2048,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens must be at least 1, got {max_new_tokens}. Leave it out for the default."
            )
        super().__init__(path, findings, dtype=dtype, device=device, batch_size=batch_size)
        self.max_new_tokens = max_new_tokens
        self._head, self._tail = split_conversation(
            self.local.tokenizer, system_prompt(findings), REPORT_SLOT
        )
        self._grammar_text = _answer_grammar(findings)
        self._stop_tokens = _stop_tokens(self.local)
        # Nothing of the checkpoint's own sampling settings: a penalty on repetition would spoil the quotes.
        self.local.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._stop_tokens,
            pad_token_id=self._stop_tokens[0],
        )
        self._grammar = self._compile_grammar()

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """What the answers depend on besides the findings set."""
        prompt = repr((self._head, self._tail, self._stop_tokens))
        return {
            "mode": "generate",
            **self.model_settings,
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "grammar_sha256": hashlib.sha256(self._grammar_text.encode()).hexdigest(),
            "max_new_tokens": self.max_new_tokens,
        }

    def label_batch(self, reports: list[str]) -> list[ReportLabels]:
        """Answer reports at once; one result per report, in order."""
        prompts = [self._prompt(report) for report in reports]
        limit = self.local.max_length
        fitting = [
            place
            for place, prompt in enumerate(prompts)
            if limit is None or len(prompt) + self.max_new_tokens <= limit
        ]
        labels = [ReportLabels.failed(self.findings.keys, TOO_LONG) for _ in reports]
        replies = self._generate([prompts[place] for place in fitting]) if fitting else []
        for place, reply in zip(fitting, replies, strict=True):
            labels[place] = self._labels(reports[place], len(prompts[place]), reply)
        return labels

    def _prompt(self, report: str) -> list[int]:
        turn = encode_data(self.local.tokenizer, delimit_report(report))
        return [*self._head, *turn, *self._tail]

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """Token ids of each reply, without what comes after its end."""
        width = max(len(prompt) for prompt in prompts)
        device = self.local.model.device
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        model: Any = self.local.model
        replies = model.generate(
            ids,
            attention_mask=torch.tensor(masks, device=device),
            logits_processor=LogitsProcessorList([LogitsProcessor(self._grammar)]),
        )[:, width:].tolist()
        return [self._until_stop(reply) for reply in replies]

    def _until_stop(self, reply: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(reply) if token in self._stop_tokens]
        return reply[: ends[0]] if ends else reply

    def _labels(self, report: str, tokens_in: int, reply: list[int]) -> ReportLabels:
        keys, tokens_out = self.findings.keys, len(reply)
        try:
            parsed = parse_reply(str(self.local.tokenizer.decode(reply)), report, self.findings)
        except LabelParseError as error:
            # A reply that ended by itself is shorter: its stop token is not counted.
            reason = ParseFailure.CUT_OFF if tokens_out == self.max_new_tokens else error.reason
            return ReportLabels.failed(
                keys, f"reply:{reason}", tokens_in=tokens_in, tokens_out=tokens_out, cost_usd=0.0
            )
        return ReportLabels(
            status=dict(parsed.status),
            score=dict.fromkeys(keys),
            evidence=parsed.evidence,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=0.0,
            num_dropped_evidence=parsed.num_dropped_evidence,
        )

    def _compile_grammar(self) -> xgrammar.CompiledGrammar:
        tokenizer = xgrammar.TokenizerInfo.from_huggingface(
            self.local.tokenizer,
            # Of the model: the embedding is often padded beyond the tokenizer.
            vocab_size=self.local.model.config.get_text_config().vocab_size,
            stop_token_ids=self._stop_tokens,
        )
        compiler = xgrammar.GrammarCompiler(tokenizer, max_threads=1)
        return compiler.compile_grammar(self._grammar_text)


def _answer_grammar(findings: FindingsSet) -> str:
    """Write the grammar of a reply: the schema of the prompt, on one line, with quotes of limited length.

    Not made from the JSON schema: xgrammar 0.2.8 lets control characters into strings of limited length,
    which no JSON reader takes, and keeps quotation marks out.
    """
    entry = r'{\"status\": \"" status "\", \"evidence\": \"" quote "\"}'
    entries = ", ".join(rf"\"{key}\": {entry}" for key in findings.keys)
    statuses = " | ".join(f'"{status}"' for status in Status)
    return (
        f'root ::= "{{{entries}}}"\n'
        f"status ::= {statuses}\n"
        f"quote ::= quote_{MAX_QUOTE_CHARACTERS}\n"
        f"{_quote_rules(MAX_QUOTE_CHARACTERS)}"
    )


def _quote_rules(max_characters: int) -> str:
    """Write one rule per number of characters that are left.

    Not ``character{0,300}``: of that, xgrammar 0.2.8 finds the allowed tokens anew at every step, which
    takes a second for a vocabulary of 49,000 tokens. Of plain rules it finds them once, when it compiles.
    """
    rules = ['quote_0 ::= ""']
    for left in range(1, max_characters + 1):
        choices = [f"{character} quote_{left - 1}" for character in _QUOTE_CHARACTERS]
        rules.append(f"quote_{left} ::= " + " | ".join(['""', *choices]))
    return "\n".join(rules)


def _stop_tokens(local: LocalModel) -> list[int]:
    """Tokens that end a reply: those of the checkpoint and that of the tokenizer."""
    stored = getattr(local.model.generation_config, "eos_token_id", None)
    tokens = stored if isinstance(stored, list) else [stored]
    return sorted({token for token in [*tokens, local.tokenizer.eos_token_id] if token is not None})
