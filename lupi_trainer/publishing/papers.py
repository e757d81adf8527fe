"""The papers that the methods come from, as model cards and README cite them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper; `venue` is where it appeared, if not on arXiv alone."""

    key: str
    title: str
    authors: str  # as BibTeX joins them: `A B and C D`
    year: int
    id: str  # of arXiv
    venue: str | None = None

    @property
    def bibtex(self) -> str:
        """Its entry for BibTeX."""
        fields = {
            "title": f"{{{self.title}}}".replace("&", "\\&"),
            "author": self.authors,
            "year": str(self.year),
            **({"booktitle": self.venue} if self.venue else {}),
            "eprint": self.id,
            "archivePrefix": "arXiv",
        }
        lines = (f"    {name:<13} = {{{value}}}," for name, value in fields.items())
        return "\n".join([f"@{'inproceedings' if self.venue else 'misc'}{{{self.key},", *lines, "}"])


ICLR, ICML = "International Conference on Learning Representations", "International Conference on Machine Learning"

SPECULATIVE_KD = Paper(
    key="xu2025speculative",
    title="Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved Sampling",
    authors=(
        "Wenda Xu and Rujun Han and Zifeng Wang and Long T. Le and Dhruv Madeka and Lei Li and "
        "William Yang Wang and Rishabh Agarwal and Chen-Yu Lee and Tomas Pfister"
    ),
    year=2025,
    id="2410.11325",
    venue=ICLR,
)
GKD = Paper(
    key="agarwal2024onpolicy",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    authors=(
        "Rishabh Agarwal and Nino Vieillard and Yongchao Zhou and Piotr Stanczyk and Sabela Ramos Garea and "
        "Matthieu Geist and Olivier Bachem"
    ),
    year=2024,
    id="2306.13649",
    venue=ICLR,
)
KD_LORA = Paper(
    key="azimi2024kdlora",
    title="KD-LoRA: A Hybrid Approach to Efficient Fine-Tuning with LoRA and Knowledge Distillation",
    authors="Rambod Azimi and Rishav Rishav and Marek Teichmann and Samira Ebrahimi Kahou",
    year=2024,
    id="2410.20777",
)
DISTILLATION = Paper(
    key="hinton2015distilling",
    title="Distilling the Knowledge in a Neural Network",
    authors="Geoffrey Hinton and Oriol Vinyals and Jeff Dean",
    year=2015,
    id="1503.02531",
)
MULTI_TOKEN = Paper(
    key="gloeckle2024better",
    title="Better & Faster Large Language Models via Multi-token Prediction",
    authors=(
        "Fabian Gloeckle and Badr Youbi Idrissi and Baptiste Rozi{\\`e}re and David Lopez-Paz and Gabriel Synnaeve"
    ),
    year=2024,
    id="2404.19737",
    venue=ICML,
)
RHO_1 = Paper(
    key="lin2024rho1",
    title="Rho-1: Not All Tokens Are What You Need",
    authors=(
        "Zhenghao Lin and Zhibin Gou and Yeyun Gong and Xiao Liu and Yelong Shen and Ruochen Xu and "
        "Chen Lin and Yujiu Yang and Jian Jiao and Nan Duan and Weizhu Chen"
    ),
    year=2024,
    id="2404.07965",
)
MEDUSA = Paper(
    key="cai2024medusa",
    title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    authors=(
        "Tianle Cai and Yuhong Li and Zhengyang Geng and Hongwu Peng and Jason D. Lee and Deming Chen and Tri Dao"
    ),
    year=2024,
    id="2401.10774",
)
SPECULATIVE_DECODING = Paper(
    key="leviathan2023fast",
    title="Fast Inference from Transformers via Speculative Decoding",
    authors="Yaniv Leviathan and Matan Kalman and Yossi Matias",
    year=2023,
    id="2211.17192",
    venue=ICML,
)
BLOCK_VERIFICATION = Paper(
    key="sun2025block",
    title="Block Verification Accelerates Speculative Decoding",
    authors=(
        "Ziteng Sun and Uri Mendlovic and Yaniv Leviathan and Asaf Aharoni and Jae Hun Ro and "
        "Ahmad Beirami and Ananda Theertha Suresh"
    ),
    year=2025,
    id="2403.10444",
    venue=ICLR,
)
