"""The papers, as cited in model cards."""

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

# Of the reward models trained on label-sensitive pairs
RLLR_PAPER = {
    "title": "Enhancing Reinforcement Learning with Label-Sensitive Reward for Natural Language Understanding",
    "id": "2405.19763",
    "citation": """\
@inproceedings{liao2024rllr,
    title     = {{Enhancing Reinforcement Learning with Label-Sensitive Reward for Natural Language Understanding}},
    author    = {Liao, Kuo and Li, Shuang and Zhao, Meng and Liu, Liqun and Xue, Mengge and Hu, Zhenyu and Han, Honglin
                 and Yin, Chengguo},
    booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics (Volume 1:
                 Long Papers)},
    pages     = {4206--4220},
    year      = {2024},
}""",
}
