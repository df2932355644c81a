"""Language models of transformers as files and configurations: what a network over semantic IDs is made of, and back.

Nothing in a folder is executed: configurations are JSON, weights safetensors, and remote code is refused.

Shape letters: R = B W rows of W beams for each of B users, H heads, T places, d width of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from readers.hub import snapshot
from settings import option
from utils import Problem, log, nearest, one_line, quoted, read_json, shown

PLACE = "{history}"  # where the items of a history stand in a prompt


@dataclass(frozen=True, kw_only=True)
class LanguageModelOptions:
    """Where the network comes from, and what of it learns."""

    lm: dict[str, Any] | None = option(
        None,
        "configuration of a transformers model by the keys of its config.json, {model_type: qwen2, hidden_size: 128}; "
        "null = that of lm_path, else a small one",
        sizeless=True,
    )
    lm_path: str | None = option(
        None, "pre-trained language model to start from: a folder, or OWNER/NAME on the hub with lm_revision", path=True
    )
    lm_revision: str | None = option(None, "commit or tag of a model on the hub", needs=("lm_path",))
    prompt: dict[str, str] | None = option(
        None,
        "text around a history for pre-trained models, {user: \"Bought: {history} Next:\"}, with system and assistant "
        "if wanted; then only the last item of a sample is a target",
        sizeless=True, needs=("lm_path",),
    )  # fmt: skip
    lora_rank: int = option(
        0, "rank of LoRA adapters (needs peft), beside which only the embeddings of codes learn; 0 = all weights learn",
        ge=0, sizeless=True,
    )  # fmt: skip
    gradient_checkpointing: bool = option(
        False, "whether activations are computed again in the backward pass, which saves memory", free=True
    )

    def __post_init__(self) -> None:
        if self.lm is None and self.lm_path is not None:
            object.__setattr__(self, "lm", config_of(folder_of(self)))
        if self.lm is not None:
            configured(self.lm)
        for key, text in (self.prompt or {}).items():
            if key not in ("system", "user", "assistant"):
                raise Problem(f"prompt: has no {quoted(key)}; there are system, user and assistant")
            if text.count(PLACE) != (key == "user"):
                raise Problem(f"prompt: {PLACE} must stand once in user and nowhere else, not in {key} {quoted(text)}")
        if self.prompt is not None and "user" not in self.prompt:
            raise Problem(f"prompt: needs the key user, a text with {PLACE}")


# ---------------------------------------------------------------- configurations

START = "decoder_start_token_id"  # of every encoder-decoder, though not all list it
WORDS = {"vocab_size": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, START: 0}  # beside codes alone


@cache
def defaults(kind: str) -> dict[str, Any]:
    """All keys of a model type with their defaults; Problem where transformers has no such type."""
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise Problem(f"lm: transformers has no model_type {quoted(kind)}{like(kind, list(CONFIG_MAPPING.keys()))}")
    found: dict[str, Any] = CONFIG_MAPPING[kind]().to_dict()
    more = [START] if found.get("is_encoder_decoder") else []
    return dict.fromkeys([*CONFIG_MAPPING[kind].attribute_map, *more]) | found


def like(word: str, known: list[str]) -> str:
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def configured(lm: Mapping[str, Any]) -> Any:
    """The configuration object; Problem names a key that is not there, or sizes that do not go together."""
    from transformers import AutoConfig

    if not isinstance(kind := lm.get("model_type"), str):
        raise Problem(f"lm: needs a model_type, as in {{model_type: qwen2, hidden_size: 128}}; got {shown(dict(lm))}")
    known = defaults(kind)
    for key in lm:
        if key not in known:
            raise Problem(f"lm: {kind} has no {quoted(key)}{like(str(key), list(known))}")
    try:
        config: Any = AutoConfig.for_model(**completed(lm))
        if "num_key_value_heads" in known and "num_key_value_heads" not in lm:
            config.num_key_value_heads = config.num_attention_heads
    except Exception as e:  # each configuration checks its values in its own way
        raise Problem(f"lm: not a configuration of {kind} ({one_line(e)})") from None
    check_sizes(kind, config, known)
    return config


def completed(lm: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the few words that a model needs which has no vocabulary, and with where a decoder starts."""
    known = defaults(lm["model_type"])
    needed = {START: lm.get("pad_token_id") or known.get("pad_token_id") or 0} if "vocab_size" in lm else WORDS
    return {**{k: v for k, v in needed.items() if k in known}, **lm}


def check_sizes(kind: str, config: Any, known: Mapping[str, Any]) -> None:
    """Problem where heads do not share out the width, or the heads of keys those of queries."""
    width, heads = getattr(config, "hidden_size", 1), getattr(config, "num_attention_heads", 1)
    each = getattr(config, "num_key_value_heads", None) or heads
    if min(width, heads, each) < 1:
        raise Problem(f"lm: {kind} of width {width} with {heads} heads; both must be at least 1")
    if "head_dim" not in known and width % heads:
        raise Problem(
            f"lm: {kind} has a width of {width}, not divisible by {heads} heads; {width + -width % heads} would do"
        )
    if heads % each:
        raise Problem(f"lm: {kind} has {heads} heads, not divisible by num_key_value_heads {each}; set that to 1")


def maker(auto: str) -> Any:
    """A class of transformers by its name; what it does is told by our own lines."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, auto)


def untrained(lm: Mapping[str, Any], auto: str) -> Any:
    """A model of transformers with random weights; auto: the class that makes it."""
    config = configured(lm)
    try:
        model = maker(auto).from_config(config, attn_implementation="sdpa")
    except Exception as e:  # of another kind (an encoder), or sizes that its layers do not take
        raise Problem(
            f"lm: {lm['model_type']} is no {auto.removeprefix('AutoModelFor')} ({one_line(e)}); choose another "
            "model_type"
        ) from None
    if getattr(config, "final_logit_softcapping", None):
        raise Problem(
            f"lm: {lm['model_type']} caps its scores (final_logit_softcapping), which is not supported; set that to "
            "null in lm"
        )
    return model


# ---------------------------------------------------------------- folders


def folder_of(cfg: LanguageModelOptions) -> Path:
    """The folder of `lm_path`, from the hub or its cache where it is no folder here."""
    name = str(cfg.lm_path)
    folder = Path(name).expanduser()
    try:
        there = folder.is_dir()
    except OSError:  # a name that no folder can have
        there = False
    if there:
        if cfg.lm_revision is not None:
            raise Problem(f"lm_revision: {folder} is a folder, it has none; leave it out")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise Problem(f"lm_path: {name} is neither a folder nor a name on the hub (OWNER/NAME)")
    if cfg.lm_revision is None:
        raise Problem(f"lm_path: {name} is no folder here; for a model on the hub name its --lm_revision=COMMIT too")
    return snapshot("lm_path", name, cfg.lm_revision)


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json says, by the keys that this transformers knows."""
    said = read_json(folder / "config.json")
    kind = said.get("model_type") if isinstance(said, dict) else None
    if not isinstance(kind, str):
        raise Problem(f"lm_path: {folder / 'config.json'} names no model_type; name the folder of a language model")
    known = defaults(kind)
    held = {k: v for k, v in said.items() if k in known and k not in ("transformers_version", "architectures", "dtype")}
    return completed({"model_type": kind, "vocab_size": known.get("vocab_size"), **held})


def weights_of(folder: Path, auto: str) -> Any:
    """The trained model of a folder in float32; Problem where weights are pickled, missing, of other names or sizes."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Problem(f"lm_path: {folder} has no *.safetensors; pickled weights are not read, save them as safetensors")
    try:
        names = {name for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118 - it is no dictionary
        model, told = maker(auto).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
            attn_implementation="sdpa", output_loading_info=True,
        )  # fmt: skip
    except Exception as e:  # whatever the libraries meet in the files
        raise Problem(f"lm_path: {folder} cannot be loaded as {auto} ({one_line(e)})") from None
    missing = sorted(told["missing_keys"])
    # the library fills the table of words in silence from the logits', where the names of the former are missing
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    heads = [f"{name}.weight" for name, module in model.named_modules() if module is head]
    own = [n for n, p in model.named_parameters(remove_duplicate=False) if p is table and n not in heads]
    if not any(name.endswith(".".join(end.split(".")[-2:])) for end in own for name in names):
        missing += own[:1]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise Problem(
            f"lm_path: {folder} has no weights called {missing[0]}{more}; it is no checkpoint for {auto}, choose "
            "another one"
        )
    if others := sorted(told["unexpected_keys"]):
        log.warning(f"lm_path: {folder} has {len(others)} weights that {auto} does not use, such as {others[0]}")
    return model


def tokenizer_of(folder: Path, rows: int) -> Any:
    """The folder's tokenizer; Problem where there is none, or it knows more tokens than the table of words has rows."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise Problem(f"prompt: {folder} has no usable tokenizer ({one_line(e)}); leave the prompt out") from None
    if len(found) > rows:
        raise Problem(
            f"prompt: the tokenizer of {folder} has {len(found)} tokens, its model {rows} embeddings; name a folder "
            "whose files belong together"
        )
    return found


def prompt_ids(folder: Path, rows: int, prompt: Mapping[str, str]) -> tuple[Tensor, Tensor]:
    """Token ids before and behind a history: by the chat template where the tokenizer has one, else the plain texts."""
    tokenizer = tokenizer_of(folder, rows)
    if tokenizer.chat_template:
        turns = [{"role": role, "content": prompt[role]} for role in ("system", "user") if role in prompt]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        text = "\n".join(prompt[role] for role in ("system", "user") if role in prompt)
    before, found, behind = (text + prompt.get("assistant", "")).partition(PLACE)
    if not found:
        raise Problem(
            f"prompt: the chat template of {folder} drops the text with {PLACE}; write it without system, or leave "
            "the prompt out"
        )
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, behind)]
    if tokenizer.unk_token_id in (unknown := [*ids[0], *ids[1]]):
        log.warning(
            f"prompt: the tokenizer of {folder} does not know {unknown.count(tokenizer.unk_token_id)} of its tokens"
        )
    return torch.tensor(ids[0], dtype=torch.long), torch.tensor(ids[1], dtype=torch.long)


# ---------------------------------------------------------------- what is put into a model


@cache
def shared_keys() -> str:
    """Name of an attention of transformers where a user's beams, which are rows of queries, share one row of keys."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: nn.Module, q_RHTd: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, None]:
        rows, users = len(q_RHTd), len(k_BHTd)
        if rows == users:
            return sdpa_attention_forward(module, q_RHTd, k_BHTd, v_BHTd, mask, **more)
        q_BHWd = q_RHTd[:, :, 0].unflatten(0, (users, -1)).transpose(1, 2)  # beams become queries
        y_BWHd, _ = sdpa_attention_forward(module, q_BHWd, k_BHTd, v_BHTd, mask, **more | {"is_causal": False})
        return y_BWHd.flatten(0, 1)[:, None], None

    AttentionInterface.register("shared_keys", attend)
    AttentionMaskInterface.register("shared_keys", sdpa_mask)
    return "shared_keys"


def adapted(body: nn.Module, rank: int) -> None:
    """LoRA adapters (arXiv:2106.09685) beside every linear layer; all else rests."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Problem("lora_rank: needs peft, which is not installed: pip install peft") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), body)
    body.requires_grad_(False)
    for name, p in body.named_parameters():
        p.requires_grad_("lora_" in name)


def plain_state(body: nn.Module) -> dict[str, Tensor]:
    """The body's state by transformers' own names, adapters merged."""
    found = {}
    for name, tensor in body.state_dict().items():
        layer, base, rest = name.rpartition(".base_layer.")
        if base:
            delta = body.get_submodule(layer).get_delta_weight("default") if rest == "weight" else 0  # type: ignore[operator]
            found[f"{layer}.{rest}"] = tensor + delta
        elif ".lora_" not in name:
            found[name] = tensor
    return found


@torch.no_grad()
def take_state(body: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a body, adapted or not, from a state by transformers' own names."""
    for name, tensor in body.state_dict().items():
        if ".lora_" not in name:
            tensor.copy_(state[name.replace(".base_layer.", ".")])
