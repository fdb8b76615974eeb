"""What configurations share: a field for everything, at the values of the NFNet paper.

Brock et al. 2021b, arXiv:2102.06171, section 6.1 and appendix.
"""

from ml_collections import ConfigDict

from nfnets_jax.models.nfnet import VARIANTS

_IMAGENET_IMAGES = 1_281_167
_EPOCHS = 360
# RandAugment of NFNets: this many operations an image, at a magnitude that grows with the variant.
_RANDAUGMENT_LAYERS = 4
_RANDAUGMENT_MAGNITUDE = (5, 10, 10, 15, 15, 15, 15, 15)


def small_images(model: str, data: str, size: int) -> ConfigDict:
    """Training on small images that are already cut, of ``size`` pixels; every field is here."""
    return ConfigDict(
        {
            "model": {
                "name": model,
                "dropout_rate": 0.0,
                "stochastic_depth_rate": 0.0,
                "remat": "none",  # or "block", "full": less memory for more arithmetic
            },
            "data": {
                "name": data,  # digits, tfds:NAME, folder or synthetic
                "dir": "",  # of tfds:NAME, its data directory; of folder, the one with the classes
                "test_dir": "",  # of folder: the same for evaluation
                "image_size": size,
                "test_image_size": size,
                "test_margin": 0,  # pixels cut off before evaluation
                "test_crop": "resize",  # first, or "padded": cut first
                "crop": "pad",  # pad or inception
                "padding": 0,  # of crop pad: largest shift, pixels
                "flip": False,
                "num_workers": 0,  # processes that read images; 0 reads in threads
                "max_unreadable": 0.001,  # share of a split's images beyond which the run ends
            },
            "augment": {
                "randaugment_layers": 0,
                "randaugment_magnitude": 0,
                "mixup_alpha": 0.0,
                "cutmix": False,
                "mix_first": True,  # before RandAugment
            },
            "batch_size": 256,  # over all devices and hosts
            "micro_batch_size": 0,  # images a device works on at once; 0: as many as fit
            "num_steps": 1000,
            "num_devices": 0,  # of this host; 0 takes all
            "seed": 0,
            "precision": "float32",  # or bfloat16
            "label_smoothing": 0.1,
            "ema_decay": 0.99999,
            "optimizer": {
                "base_learning_rate": 0.1,  # for a batch of 256, scaled with the batch
                "warmup_fraction": 5 / _EPOCHS,  # of num_steps
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 2e-5,
                "clipping": 0.01,
                "clipping_eps": 1e-3,
                "sam_rho": 0.0,  # distance of sharpness-aware minimization; 0 for none
                "sam_fraction": 1.0,  # of the batch that decides its direction
            },
            "on_divergence": "stop",  # or "skip": on from the last checkpoint, with other images
            "log_every": 100,
            "eval_every": 0,  # 0: at the end only
            "checkpoint_every": 0,  # 0: at the end only
            "keep_checkpoints": 3,
        }
    )


def nfnet_imagenet(index: int) -> ConfigDict:
    """NFNet-F``index`` on ImageNet: batch 4096 for 360 epochs."""
    name = f"nfnet_f{index}"
    variant = VARIANTS[name]
    config = small_images(name, "tfds:imagenet2012", variant.train_size)
    config.model.dropout_rate = variant.dropout_rate
    config.model.stochastic_depth_rate = variant.stochastic_depth_rate
    config.data.update(
        {
            "test_image_size": variant.test_size,
            "test_margin": 32,
            "crop": "inception",
            "flip": True,
        }
    )
    config.batch_size = 4096
    config.num_steps = _EPOCHS * _IMAGENET_IMAGES // config.batch_size
    config.precision = "bfloat16"
    config.eval_every = config.checkpoint_every = 1000
    config.augment.randaugment_layers = _RANDAUGMENT_LAYERS
    config.augment.randaugment_magnitude = _RANDAUGMENT_MAGNITUDE[index]
    config.augment.mixup_alpha = 0.2
    config.augment.cutmix = True
    return config
