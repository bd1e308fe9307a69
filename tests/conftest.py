"""
Settings and fixtures that every test shares. The settings stand first because Hugging Face libraries read them when
they load; for the same reason, and because most tests need no torch, the fixtures import late.
"""

import os
import random
from pathlib import Path

import pytest
from hypothesis import settings


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models here are so small that threads cost more than they give; one thread also makes sums come out in the same
# order on every machine. Processes that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is not a failing property.
settings.register_profile("rlmec", deadline=None)
settings.load_profile("rlmec")


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    """Run scripts in processes of their own, which do not wait for imports."""
    from tests.scripts import Scripts

    scripts = Scripts(tmp_path_factory.mktemp("scripts"))
    yield scripts
    scripts.stop()


@pytest.fixture(scope="session")
def run_on_two(scripts):
    """Run a script on two CPU processes, as `accelerate launch` does, and return its output."""

    def run_on_two(script, *words, cwd=ROOT):
        from torch.distributed import TCPStore

        # The store has its port before the processes look for it
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
        }
        shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        shared |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
        environments = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        finished = scripts.run(ROOT / "tests" / "on_two.py", script, *words, cwd=cwd, environments=environments)
        assert finished.exit_code == 0, finished.stdout[-1000:] + finished.stderr[-5000:]
        return finished.stdout

    return run_on_two


@pytest.fixture(scope="session")
def tokenizer():
    """The word-level tokenizer of the built-in task. Tests that change it take a copy."""
    from rlmec_trl.tasks.arithmetic import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    """The same with a chat template, so that messages and texts differ."""
    from rlmec_trl.tasks.arithmetic import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}<eos>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %} attempt{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def thinking_tokenizer():
    """The same with a chat template that shows what `enable_thinking` is: "=" for no, "makes" for yes."""
    from rlmec_trl.tasks.arithmetic import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        "{% if enable_thinking is defined %}{{ ' makes' if enable_thinking else ' =' }}{% endif %}"
        "{% if add_generation_prompt %} attempt{% endif %}"
    )
    return tokenizer


@pytest.fixture
def policy(make_policy):
    """An untrained policy of one layer."""
    return make_policy()


@pytest.fixture
def make_policy(tokenizer):
    """Make untrained policies of one layer, always with the same weights."""
    from rlmec_trl.tasks import arithmetic

    def make(sharpness=1.0, mixing=1.0, num_hidden_layers=1):
        policy = arithmetic.make_policy(tokenizer, hidden_size=16, num_hidden_layers=num_hidden_layers)
        # Fresh weights give nearly the same probability to every token, which hides mistakes ...
        policy.get_input_embeddings().weight.data.mul_(sharpness)
        # ... and if they do not, tied embeddings favor the previous token, whatever the context.
        for parameter in policy.model.layers.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(mixing)
        return policy

    return make


@pytest.fixture
def base(tmp_path, tokenizer):
    """Path of a model that adapters are trained on."""
    from rlmec_trl.tasks import arithmetic

    # bitsandbytes takes 64 weights as one block, and a row holds whole blocks
    policy = arithmetic.make_policy(tokenizer, hidden_size=64, num_hidden_layers=1)
    policy.get_input_embeddings().weight.data.mul_(10.0)  # fresh weights give nearly the same to every token
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture(scope="session")
def make_rows(tokenizer):
    """
    Make scored rows of the built-in task: correct samples, incorrect ones, and correct answers with an incorrect step,
    with random token probabilities and old log-probabilities, of different lengths.
    """
    from rlmec_trl.data.tokens import encode_completion
    from rlmec_trl.tasks import arithmetic

    def make(num_rows, seed=0, kinds=("right", "wrong", "flawed")):
        rng = random.Random(seed)
        task = arithmetic.make_arithmetic(seed=seed, warmup=0, train=num_rows, validation=0, test=0)["train"]
        rows = []
        for index, row in enumerate(task):
            numbers = arithmetic.read_problem(row["prompt"])
            solution = arithmetic.write_solution(numbers, [rng.choice(arithmetic.CONNECTIVES) for _ in numbers[1:]])
            steps = solution.split(" ; ")
            kind = kinds[index % len(kinds)]
            if kind == "wrong":
                steps = steps[1:] if rng.random() < 0.3 else steps  # unequal lengths
                steps[-1] = f"The answer is {rng.randint(1, 9)}"
            if kind == "flawed":
                steps[rng.randrange(3)] += str(rng.randrange(10))
            completion = " ; ".join(steps)
            error_step, rewrite = arithmetic.rewrite_minimally(row["prompt"], row["reference"], completion)
            completion_ids = encode_completion(tokenizer, completion)
            rows.append(
                {
                    **row,
                    "completion": completion,
                    "completion_ids": completion_ids,
                    "correct": kind != "wrong",
                    "error_step": error_step,
                    "rewrite": rewrite,
                    "token_probs": [rng.random() for _ in completion_ids],
                    # Around what an untrained policy gives, and far enough from it for the ratio to be clipped
                    "old_logps": [-4.2 + rng.uniform(-0.6, 0.6) for _ in completion_ids],
                }
            )
        return rows

    return make


@pytest.fixture
def make_reward_model(tokenizer):
    """Make untrained reward models of one layer, always with the same weights, whose values differ much."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    def make(seed=0, **config):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        settings = {**sizes, **ids, "vocab_size": len(tokenizer), "num_labels": 1, **config}
        model = LlamaForSequenceClassification(LlamaConfig(**settings))
        model.score.weight.data.mul_(30.0)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_pairs():
    """Make pairs of responses of the built-in task, of unequal lengths, of both kinds in turn."""
    from rlmec_trl.tasks import arithmetic

    def make(num_rows, seed=0):
        rng = random.Random(seed)
        task = arithmetic.make_arithmetic(seed=seed, warmup=0, train=num_rows, validation=0, test=0)["train"]
        pairs = []
        for index, row in enumerate(task):
            numbers = arithmetic.read_problem(row["prompt"])
            chosen = arithmetic.write_solution(numbers, [rng.choice(arithmetic.CONNECTIVES) for _ in numbers[1:]])
            rejected = chosen.split(" ; ")[rng.randrange(2) :]
            rejected[-1] = f"The answer is {rng.randint(1, 9)}"
            kind = ("label", "rationale")[index % 2]
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": " ; ".join(rejected), "kind": kind})
        return pairs

    return make
