"""Names of parts and protocols that can be asked for."""

PARTS = ("robustness", "masking", "w2", "hessian", "landscape", "similarity")

# What papers report. Besides attacks: "clean"; "autoattack", the standard ensemble, in which each
# attack sees what the ones before it left; "val_" before a name: on validation images.
PRESETS: dict[str, tuple[str, ...]] = {
    "autoattack": ("autoattack",),
    "2410.07675": ("val_pgd10", "clean", "pgd10", "autoattack"),
    # the step is that of CIFAR; on MNIST it is 0.01
    "2006.08403": ("pgd100@1/255", "apgd-ce", "apgd-dlr", "square5000"),
}
