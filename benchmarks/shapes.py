"""Layers of real networks, as data: what the benchmark measures and what a plan is calibrated on."""

from collections.abc import Mapping, Sequence

from benchmarks.row import Row, rows

# name, class, N, C, s, O, k, G and what differs from stride 1, "same" padding and float32 in both layouts.
_GROUPED = [
    *rows("rx50-s2 g32", "grouped", 1, 128, 56, 128, 3, 32),
    *rows("rx50-s2 g32 b8", "grouped", 8, 128, 56, 128, 3, 32),
    *rows("rx50-s2 s2", "grouped", 1, 256, 56, 256, 3, 32, stride=2),
    *rows("rx50-s3 g32", "grouped", 1, 256, 28, 256, 3, 32),
    *rows("rx50-s4 g32", "grouped", 1, 512, 14, 512, 3, 32),
    *rows("rx50-s4 g32 b8", "grouped", 8, 512, 14, 512, 3, 32),
    *rows("rx50-s4 s2 b8", "grouped", 8, 512, 28, 512, 3, 32, stride=2),
    *rows("rx50-s5 g32", "grouped", 1, 1024, 7, 1024, 3, 32),
    *rows("regnet gw8", "grouped", 1, 208, 14, 208, 3, 26),
    *rows("regnet gw16", "grouped", 1, 320, 14, 320, 3, 20),
    *rows("regnet gw16 b32", "grouped", 32, 320, 14, 320, 3, 20, layouts="last"),
    *rows("regnet gw24", "grouped", 1, 144, 28, 144, 3, 6),
    *rows("regnet gw48", "grouped", 1, 432, 14, 432, 3, 9),
    *rows("regnet gw64", "grouped", 1, 512, 14, 512, 3, 8),
    *rows("regnet gw64 s2 b8", "grouped", 8, 192, 28, 192, 3, 3, stride=2),
    *rows("alex g2", "grouped", 1, 96, 27, 256, 5, 2),
    *rows("squeeze 4 to 1", "grouped", 1, 256, 28, 64, 3, 64),
]
_DEPTHWISE = [
    *rows("mbv1 dw 112", "depthwise", 1, 32, 112, 32, 3, 32),
    *rows("mbv1 dw 112 b32", "depthwise", 32, 32, 112, 32, 3, 32),
    *rows("mbv1 dw 56 b8", "depthwise", 8, 128, 56, 128, 3, 128),
    *rows("mbv1 dw s2", "depthwise", 1, 128, 56, 128, 3, 128, stride=2),
    *rows("mbv1 dw 14", "depthwise", 1, 512, 14, 512, 3, 512),
    *rows("mbv1 dw 14 b32", "depthwise", 32, 512, 14, 512, 3, 512),
    *rows("mbv1 dw 7", "depthwise", 1, 1024, 7, 1024, 3, 1024),
    *rows("effnet dw5 14", "depthwise", 1, 672, 14, 672, 5, 672),
    *rows("effnet dw5 s2 b8", "depthwise", 8, 144, 56, 144, 5, 144, stride=2),
    *rows("cnext dw7 56", "depthwise", 1, 96, 56, 96, 7, 96),
    *rows("cnext dw7 14", "depthwise", 1, 384, 14, 384, 7, 384),
    *rows("cnext dw7 b8", "depthwise", 8, 96, 56, 96, 7, 96),
    *rows("dw mult4", "depthwise", 1, 32, 56, 128, 3, 32),
    *rows("dw mult2", "depthwise", 1, 64, 28, 128, 3, 64),
    *rows("dw mult8 rgb", "depthwise", 1, 3, 224, 24, 3, 3),
]
_LARGE = [
    *rows("replk dw31 56", "large kernel", 1, 128, 56, 128, 31, 128),
    *rows("replk dw29 28", "large kernel", 1, 256, 28, 256, 29, 256),
    *rows("replk dw13 28", "large kernel", 1, 256, 28, 256, 13, 256),
    *rows("replk dw13 7 b8", "large kernel", 8, 1024, 7, 1024, 13, 1024),
    *rows("slak dw5x51", "large kernel", 1, 124, 56, 124, (5, 51), 124),
]
_ONE_D = [
    *rows("mamba dw4 causal", "1-d", 1, 1536, 2048, 1536, 4, 1536, padding="causal", ndim=1),
    *rows("mamba dw4 causal b8", "1-d", 8, 1536, 512, 1536, 4, 1536, padding="causal", ndim=1),
    *rows("conformer dw31", "1-d", 1, 256, 400, 256, 31, 256, ndim=1),
    *rows("conformer dw31 b8", "1-d", 8, 256, 400, 256, 31, 256, ndim=1),
    *rows("tasnet dw3 d16", "1-d", 1, 512, 1000, 512, 3, 512, dilation=16, ndim=1),
    *rows("wav2vec2 g16 k128", "1-d", 1, 768, 50, 768, 128, 16, padding=64, ndim=1),
]
_THREE_D = [
    *rows("x3d dw 28", "3-d", 1, 108, (8, 28, 28), 108, 3, 108, ndim=3),
    *rows("x3d dw s122", "3-d", 1, 54, (8, 56, 56), 54, 3, 54, stride=(1, 2, 2), ndim=3),
    *rows("csn dw 14 b8", "3-d", 8, 256, (4, 14, 14), 256, 3, 256, ndim=3),
    *rows("r3d s2", "3-d", 1, 64, (8, 28, 28), 128, 3, 1, stride=2, ndim=3),
    *rows("resnext3d g32", "3-d", 1, 128, (4, 14, 14), 128, 3, 32, ndim=3),
]
_DILATED = [
    *rows("deeplab dw d2", "dilated", 1, 728, 32, 728, 3, 728, dilation=2),
    *rows("aspp dw d12", "dilated", 1, 256, 32, 256, 3, 256, dilation=12),
    *rows("rx50-s3 g32 d2", "dilated", 1, 256, 28, 256, 3, 32, dilation=2),
    *rows("van dw7 d3 b8", "dilated", 8, 64, 56, 64, 7, 64, dilation=3),
]
_POINTWISE = [
    *rows("shuffle 1x1 g3", "1x1", 1, 240, 28, 240, 1, 3),
    *rows("shuffle 1x1 g8", "1x1", 1, 384, 28, 384, 1, 8),
    *rows("shuffle 1x1 g8 b32", "1x1", 32, 384, 14, 384, 1, 8),
    *rows("1x1 g64", "1x1", 1, 512, 28, 512, 1, 64),
    *rows("1x1 dw scale", "1x1", 1, 256, 28, 256, 1, 256),
]
_TRANSPOSED = [
    *rows("fcn up k4 s2 dw", "transposed", 1, 21, 64, 21, 4, 21, stride=2, padding=1, form="transpose"),
    *rows("up k2 s2 g8", "transposed", 1, 128, 28, 64, 2, 8, stride=2, padding=0, form="transpose"),
    *rows("up k4 s2 g4", "transposed", 1, 256, 16, 128, 4, 4, stride=2, padding=1, form="transpose"),
    *rows("up k3 s2 g32", "transposed", 1, 256, 14, 256, 3, 32, stride=2, padding=1, output_padding=1, form="transpose"),
    *rows("up k4 s2 dense", "transposed", 1, 128, 28, 64, 4, 1, stride=2, padding=1, form="transpose"),
    *rows("unet3d up k2 s2", "transposed", 1, 64, 14, 32, 2, 1, stride=2, padding=0, ndim=3, form="transpose"),
    *rows("vocoder k16 s8 dw", "transposed", 1, 256, 200, 256, 16, 256, stride=8, padding=4, ndim=1, form="transpose"),
]
_VMAP = [
    *rows("ensemble8 3x3", "vmap", 4, 32, 28, 32, 3, 1, form="ensemble", members=8),
    *rows("ensemble8 dw", "vmap", 4, 64, 28, 64, 3, 64, form="ensemble", members=8),
    *rows("ensemble4 g4", "vmap", 1, 64, 28, 64, 3, 4, form="ensemble", members=4),
    *rows("per-example 3x3", "vmap", 8, 32, 28, 32, 3, 1, form="per_example"),
    *rows("per-example rgb5", "vmap", 16, 3, 32, 32, 5, 1, form="per_example"),
    *rows("per-example dw", "vmap", 8, 128, 14, 128, 3, 128, form="per_example"),
]
_DTYPES = [
    *rows("rx50-s3 g32", "dtypes", 1, 256, 28, 256, 3, 32, dtypes="float64 bfloat16"),
    *rows("mbv1 dw 56", "dtypes", 1, 128, 56, 128, 3, 128, dtypes="float64 bfloat16"),
    *rows("cnext dw7 14", "dtypes", 1, 384, 14, 384, 7, 384, dtypes="float64 bfloat16"),
    *rows("mamba dw4 causal", "dtypes", 1, 1536, 2048, 1536, 4, 1536, padding="causal", ndim=1, dtypes="bfloat16"),
]
_NOTEBOOK = [row for g in (1, 2, 3, 6) for row in rows(f"seed g{g}", "first notebook", 1, 6, 256, 24, 3, g, padding=0)]
_DENSE = [
    *rows("resnet 3x3 56", "dense", 1, 64, 56, 64, 3, 1),
    *rows("resnet 3x3 14 b8", "dense", 8, 256, 14, 256, 3, 1),
    *rows("resnet 1x1", "dense", 1, 256, 28, 128, 1, 1),
    *rows("resnet stem", "dense", 1, 3, 224, 64, 7, 1, stride=2),
    *rows("vit patch16", "dense", 1, 3, 224, 192, 16, 1, stride=16, padding=0),
]

ROWS: Sequence[Row] = (
    *_GROUPED,
    *_DEPTHWISE,
    *_LARGE,
    *_ONE_D,
    *_THREE_D,
    *_DILATED,
    *_POINTWISE,
    *_TRANSPOSED,
    *_VMAP,
    *_DTYPES,
    *_NOTEBOOK,
    *_DENSE,
)

# For a GPU: most are what users reported to JAX, Keras and XLA as slow, crashing or wrong; a number is that of a report. All
# others take some ten microseconds at least. Those that matter most come first, for runs that must end early.
_ON_GPU = [
    *rows("report 13800 dw5", "1-d", 32, 512, 1024, 512, 5, 512, ndim=1, layouts="first"),
    *rows("dw3 56 b64", "depthwise", 64, 128, 56, 128, 3, 128, layouts="last", dtypes="float32 bfloat16"),
    *rows("short causal dw4", "1-d", 8, 2048, 4096, 2048, 4, 2048, padding="causal", ndim=1, layouts="last", dtypes="bfloat16"),
    *rows("report 26266 dw3 d16", "dilated", 32, 512, 1024, 512, 3, 512, dilation=16, ndim=1, layouts="first"),
    *rows(
        "report 31662 up k3 s2",
        "transposed",
        *(1, 64, (64, 64, 32), 1, 3, 1),
        **dict(stride=2, padding=1, output_padding=1, ndim=3, form="transpose", layouts="first", dtypes="bfloat16"),
    ),
    *rows("report 49123 1x1 g2", "int8", 1, 4, 1, 4, 1, 2, padding=0, layouts="first", dtypes="int8-int8 int8"),
    *rows("int8 3x3 g2", "int8", 32, 128, 56, 128, 3, 2, dtypes="int8"),
    *rows("report 37922 s2 d2", "1-d", 2, 4, 16, 16, 3, 1, stride=2, dilation=2, ndim=1, layouts="first", dtypes="bfloat16"),
    *rows("report 20471 1x1 g2", "1x1", 32, 512, 64, 128, 1, 2, layouts="last", dtypes="tf32 bfloat16"),
    *rows("rx50-s2 g32 b64", "grouped", 64, 128, 56, 128, 3, 32, layouts="last", dtypes="tf32 bfloat16"),
    *rows("regnet gw16 b64", "grouped", 64, 320, 14, 320, 3, 20, layouts="last", dtypes="bfloat16"),
    *rows("dw3 56 b64", "depthwise", 64, 128, 56, 128, 3, 128, layouts="first", dtypes="float32"),
    *rows("report 13800 dw5", "1-d", 32, 512, 1024, 512, 5, 512, ndim=1, layouts="last", dtypes="bfloat16"),
    *rows("cnext dw7 b64", "depthwise", 64, 96, 56, 96, 7, 96, layouts="last", dtypes="float32 float16"),
    *rows("mbv1 dw s2 b64", "depthwise", 64, 128, 56, 128, 3, 128, stride=2, layouts="last", dtypes="bfloat16"),
    *rows("aspp dw d12 b32", "dilated", 32, 256, 32, 256, 3, 256, dilation=12, layouts="first", dtypes="float16"),
    *rows(
        "vocoder k16 s8 dw b16",
        "transposed",
        *(16, 256, 1024, 256, 16, 256),
        **dict(stride=8, padding=4, ndim=1, form="transpose", layouts="first"),
    ),
    *rows("up k4 s2 g4 b32", "transposed", 32, 256, 32, 128, 4, 4, stride=2, padding=1, form="transpose", layouts="first"),
    *rows("wide s2 d2", "1-d", 32, 256, 4096, 256, 3, 1, stride=2, dilation=2, ndim=1, layouts="first", dtypes="bfloat16"),
    *rows("rx50-s4 g32 b64", "grouped", 64, 512, 14, 512, 3, 32, layouts="last", dtypes="bfloat16"),
    *rows("regnet gw48 b64", "grouped", 64, 432, 14, 432, 3, 9, layouts="last", dtypes="bfloat16"),
    *rows("shuffle 1x1 g8 b64", "1x1", 64, 384, 28, 384, 1, 8, layouts="last", dtypes="bfloat16"),
]

SELECTIONS: Mapping[str, Sequence[Row]] = {"all": ROWS, "gpu": _ON_GPU}
