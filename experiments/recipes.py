"""What configurations share: a field for everything, at the values of the NFNet paper.

NFNets: Brock et al. 2021b, arXiv:2102.06171, section 6.1 and appendix. NF-ResNets and NF-RegNets:
Brock et al. 2021a, arXiv:2101.08692, sections 5 and 6 and appendix.
"""

from ml_collections import ConfigDict

import nfnets_jax

_IMAGENET_IMAGES = 1_281_167
_EPOCHS = 360
_WARMUP_EPOCHS = 5
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
            "init": {
                "weights": "",  # a file, run or URL to start from, or "published"; "" starts anew
                "new_classifier": False,  # also where the classes are as many
            },
            "data": {
                "name": data,  # digits, tfds:NAME, folder or synthetic
                "dir": "",  # of tfds:NAME, its data directory; of folder, the one with the classes
                "test_dir": "",  # of folder: the same for evaluation
                "holdout": 0,  # training images to be tested on, instead of the test images
                "image_size": size,
                "test_image_size": size,
                "test_margin": 0,  # pixels cut off before evaluation
                "test_crop": "resize",  # first, or "padded": cut first
                "crop": "pad",  # pad or inception
                "padding": 0,  # of crop pad: largest shift, pixels
                "reflect": False,  # the image at the edges it is moved from; else it is black there
                "flip": False,
                "num_workers": 0,  # processes that read images; 0 reads in threads
                "max_unreadable": 0.001,  # share of a split's images beyond which the run ends
            },
            "augment": {
                "name": "standard",  # or one that a project registers
                "randaugment_layers": 0,
                "randaugment_magnitude": 0,
                "mixup_alpha": 0.0,
                "cutmix": False,
            },
            "batch_size": 256,  # over all devices and hosts
            "micro_batch_size": 0,  # images a device works on at once; 0: as many as fit
            "num_steps": 1000,
            "num_devices": 0,  # of this host; 0 takes all
            "cpu_processes": 1,  # of a core each, where there is nothing else; 0: one a core
            "seed": 0,
            "precision": "float32",  # or bfloat16, bfloat16_products
            "label_smoothing": 0.1,
            "ema_decay": 0.99999,
            "optimizer": {
                "name": "sgd",  # or rmsprop, muon
                "schedule": "cosine",  # or linear, exponential
                "decay_rate": 0.97,  # of schedule exponential: the factor, and after what share
                "decay_fraction": 0.01,  # of num_steps it comes each time
                "base_learning_rate": 0.1,  # for a batch of 256, scaled with the batch
                "warmup_fraction": _WARMUP_EPOCHS / _EPOCHS,  # of num_steps
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 2e-5,
                "clipping": 0.01,  # 0: none
                "clipping_eps": 1e-3,
                "layer_decay": 1.0,  # of the rate, a layer down; 0: the classifier alone learns
                "sam_rho": 0.0,  # distance of sharpness-aware minimization; 0 for none
                "sam_fraction": 1.0,  # of the batch that decides its direction
            },
            "on_divergence": "stop",  # or "skip": on from the last checkpoint, with other images
            "log_every": 100,
            "look_every": 100,  # steps between looks at how hard each layer is clipped; 0: never
            "log_images": 0,  # of the first batch, to TensorBoard
            "histogram_every": 0,  # steps between histograms of the parameters; 0: never
            "eval_every": 0,  # 0: at the end only
            "checkpoint_every": 0,  # steps that a kill may cost at most; 0: one at the end only
            "keep_checkpoints": 3,
        }
    )


def nfnet_imagenet(index: int) -> ConfigDict:
    """NFNet-F``index`` on ImageNet: batch 4096 for 360 epochs."""
    config = _imagenet(f"nfnet_f{index}", batch_size=4096, epochs=_EPOCHS)
    config.augment.randaugment_layers = _RANDAUGMENT_LAYERS
    config.augment.randaugment_magnitude = _RANDAUGMENT_MAGNITUDE[index]
    _mix(config)
    return config


def nf_resnet_imagenet(layers: int) -> ConfigDict:
    """NF-ResNet of so many layers on ImageNet: batch 1024 for 90 epochs, crops and mirror images.

    Published before AGC, it clips nothing.
    """
    return _earlier_optimizer(_imagenet(f"nf_resnet{layers}", batch_size=1024, epochs=90))


def nf_regnet_imagenet(index: int) -> ConfigDict:
    """NF-RegNet-B``index`` on ImageNet: batch 1024 for 360 epochs, with MixUp and CutMix."""
    config = _imagenet(f"nf_regnet_b{index}", batch_size=1024, epochs=_EPOCHS)
    _mix(config)
    return _earlier_optimizer(config)


def resnet_imagenet(name: str) -> ConfigDict:
    """A ResNet on ImageNet: batch 1024 for 90 epochs, crops and mirror images.

    Goyal et al. 2017, arXiv:1706.02677, section 5.1, with a cosine schedule and label smoothing (He
    et al. 2019, arXiv:1812.01187, section 5).
    """
    config = _earlier_optimizer(_imagenet(name, batch_size=1024, epochs=90))
    config.optimizer.weight_decay = 1e-4
    config.model.sync_axis = ""  # "devices": batches are normalized over all devices together
    return config


def efficientnet_imagenet(index: int) -> ConfigDict:
    """EfficientNet-B``index`` on ImageNet: batch 4096 for 350 epochs.

    Tan and Le 2019, arXiv:1905.11946, section 5.2: RMSProp, weight decay, dropout and stochastic
    depth. Batch, epochs, learning rate and average are those that the authors name later (Tan and
    Le 2021, arXiv:2104.00298, section 5.1). In place of AutoAugment there is RandAugment, at a
    magnitude that grows with the variant as NFNets's do.
    """
    config = _imagenet(f"efficientnet_b{index}", batch_size=4096, epochs=350)
    config.augment.randaugment_layers = 2
    config.augment.randaugment_magnitude = _RANDAUGMENT_MAGNITUDE[index]
    config.ema_decay = 0.9999
    config.optimizer.update(
        {
            "name": "rmsprop",
            "schedule": "exponential",
            "decay_fraction": 2.4 / 350,
            "base_learning_rate": 0.256 * 256 / 4096,
            "nesterov": False,
            "weight_decay": 1e-5,
            "clipping": 0.0,
        }
    )
    config.model.sync_axis = ""  # "devices": batches are normalized over all devices together
    return config


def finetuning(name: str) -> ConfigDict:
    """A network that has learned on ImageNet goes on, on photographs of other things.

    The optimizer is that of training, at a tenth of the learning rate: AGC on all but the
    classifier; ``optimizer.sam_rho=0.05`` adds SAM.
    """
    config = _imagenet(name, batch_size=128, epochs=_EPOCHS)
    config.init.weights = "published"
    config.init.new_classifier = True
    config.data.name = "folder"
    config.num_steps = 5000
    config.ema_decay = 0.999
    config.optimizer.base_learning_rate = 0.01
    config.optimizer.warmup_fraction = 0.1
    return config


def _imagenet(name: str, batch_size: int, epochs: int) -> ConfigDict:
    variant = nfnets_jax.create_model(name).config
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
    config.batch_size = batch_size
    config.num_steps = epochs * _IMAGENET_IMAGES // batch_size
    config.optimizer.warmup_fraction = _WARMUP_EPOCHS / epochs
    config.precision = "bfloat16"
    config.eval_every = config.checkpoint_every = 1000
    return config


def _mix(config: ConfigDict) -> None:
    config.augment.mixup_alpha = 0.2
    config.augment.cutmix = True


def _earlier_optimizer(config: ConfigDict) -> ConfigDict:
    """The optimizer of the earlier paper."""
    config.optimizer.clipping = 0.0
    config.optimizer.weight_decay = 5e-5
    return config
