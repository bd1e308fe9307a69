"""What somebody else does with what was published: run in a process of its own, with an empty cache."""

import json
import sys

from datasets import load_dataset

from rlmec_trl import GenerativeRewardModel, RLMECConfig, RLMECTrainer
from rlmec_trl.data.loading import load_rows


def main():
    rows = load_rows("me/scored")
    grm = GenerativeRewardModel.from_pretrained("me/grm", max_new_tokens=20, show_progress=False)
    inputs = [rows[name][:] for name in ("prompt", "reference", "completion")]
    ids = rows["completion_ids"][:]
    config = RLMECConfig(
        sys.argv[1],
        max_steps=1,
        per_device_train_batch_size=4,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = RLMECTrainer("me/policy", config, train_dataset=rows)
    trained = trainer.train()
    answers = {
        "locate": grm.locate(*inputs),
        "rewrite": grm.rewrite(*inputs, ids),
        "score": grm.score(*inputs, ids),
        "no_error": grm.wording.no_error,
        "loss": trained.training_loss,
        "edits": load_dataset("me/edits", split="train").to_list(),
        "types": {name: str(feature) for name, feature in load_rows("me/chats").features.items()},
        "chats": load_rows("me/chats").to_list(),
    }
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()
