"""
Train and evaluate on rows of which one makes the loss NaN, with both trainers, and save what stopped each process.
`accelerate launch` runs it in two.

accelerate launch tests/nonfinite_worker.py FOLDER
"""

import json
import math
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlmec_trl import GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.credit.trainer_checks import NonfiniteError
from rlmec_trl.generation.processes import end_processes


def poison(module, args, output):
    """The row alone has the token "poison"."""
    return output.masked_fill((args[0] == POISON).unsqueeze(-1), math.nan)


def make_trainer(config_class, trainer_class):
    settings = {"locate_fraction": 0.0} if config_class is GRMConfig else {}
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    model.get_input_embeddings().register_forward_hook(poison)
    rows = load_from_disk(folder / "rows")
    return trainer_class(
        model,
        config_class(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=2,
            max_steps=4,
            train_sampling_strategy="sequential",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


def stop(call):
    try:
        call()
    except NonfiniteError as error:
        return str(error)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    POISON = tokenizer.convert_tokens_to_ids("poison")
    found = []
    for classes in ((RLMECConfig, RLMECTrainer), (GRMConfig, GRMTrainer)):
        for scaled in (False, True):
            trainer = make_trainer(*classes)
            if scaled:  # as with fp16, which Accelerate does not offer on CPU
                trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
            before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
            message = stop(trainer.train)
            changed = not all(map(torch.equal, before, trainer.model.parameters()))
            finite = all(torch.isfinite(parameter).all().item() for parameter in trainer.model.parameters())
            found.append({"training": message, "changed": changed, "finite": finite})
            if not scaled:
                found[-1]["evaluation"] = stop(trainer.evaluate)
            # DDP holds the process group, which the end would wait for
            trainer.model_wrapped = trainer.model
            trainer.accelerator.free_memory()
            del trainer
    (folder / f"process-{PartialState().process_index}.json").write_text(json.dumps(found))
    end_processes()
