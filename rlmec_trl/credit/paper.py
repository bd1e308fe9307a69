"""The paper, as cited in model cards."""

PAPER = {
    "title": "Improving Large Language Models via Fine-grained Reinforcement Learning with Minimum Editing Constraint",
    "id": "2401.06081",
    "citation": """\
@inproceedings{chen2024rlmec,
    title     = {{Improving Large Language Models via Fine-grained Reinforcement Learning with Minimum Editing
                 Constraint}},
    author    = {Chen, Zhipeng and Zhou, Kun and Zhao, Wayne Xin and Wan, Junchen and Zhang, Fuzheng and Zhang, Di and
                 Wen, Ji-Rong},
    booktitle = {Findings of the Association for Computational Linguistics: ACL 2024},
    year      = {2024},
}""",
}
