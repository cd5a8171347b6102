"""Published figures, to stand beside ours."""

# Top-1 error in percent on CIFAR-10 after 400 epochs at batch 1024 (MAN, arXiv 2407.05623).
CIFAR10_ERROR = {
    "resnet32_e2e_k1": 6.37,
    "resnet32_dgl_k8": 11.63,
    "resnet32_dgl_k16": 14.08,
    "resnet32_man_dgl_k8": 8.42,
    "resnet32_man_dgl_k16": 9.11,
    "resnet32_infopro_k8": 11.51,
    "resnet32_infopro_k16": 12.93,
    "resnet32_man_infopro_k8": 9.32,
    "resnet32_man_infopro_k16": 9.65,
    "resnet110_e2e_k1": 5.42,
    "resnet110_dgl_k32": 12.51,
    "resnet110_dgl_k55": 14.45,
    "resnet110_man_dgl_k32": 9.65,
    "resnet110_man_dgl_k55": 9.73,
    "resnet110_infopro_k32": 12.26,
    "resnet110_infopro_k55": 13.22,
    "resnet110_man_infopro_k32": 9.06,
    "resnet110_man_infopro_k55": 9.77,
    # The ablation: DGL on ResNet-32, K = 16.
    "man_ema_only": 11.07,
}

# Top-1 error in percent and memory in GB on ImageNet after 90 epochs (MAN, arXiv 2407.05623).
IMAGENET_ERROR = {
    "resnet101_e2e_k1": (22.03, 19.71),
    "resnet101_infopro_k4": (22.81, 10.37),
    "resnet101_man_infopro_k4": (21.73, 10.47),
    "resnet152_e2e_k1": (21.60, 26.29),
    "resnet152_infopro_k4": (22.21, 13.48),
    "resnet152_man_infopro_k4": (20.78, 13.61),
}
