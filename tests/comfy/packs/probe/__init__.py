"""Nodes for the tests: a probe that reports what arrives, lists, and tiny diffusion models with seeded weights."""

import gc
import hashlib
import math
import pathlib
import typing

import torch
from comfy_api.latest import ComfyExtension, io


def describe(value):
    if isinstance(value, torch.Tensor):
        digest = hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        each = [hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest() for x in value]
        return {"shape": list(value.shape), "sha": digest, "each": each, "mean": float(value.float().mean())}
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value


class Probe(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_Probe", category="test", is_input_list=True, is_output_node=True,
            inputs=[io.AnyType.Input("value"), *[io.AnyType.Input(f"value{i}", optional=True) for i in range(2, 9)]],
            outputs=[],
        )  # fmt: skip

    @classmethod
    def execute(cls, **values):
        return io.NodeOutput(ui={"probe": [{k: [describe(v) for v in items] for k, items in values.items()}]})


class Numbers(io.ComfyNode):
    """ "1,2,3" as a list of whole numbers and of floats."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_Numbers", category="test", inputs=[io.String.Input("text")],
            outputs=[io.Int.Output("ints", is_output_list=True), io.Float.Output("floats", is_output_list=True)],
        )  # fmt: skip

    @classmethod
    def execute(cls, text):
        floats = [float(part) for part in text.split(",")]
        return io.NodeOutput([int(number) for number in floats], floats)


class Collect(io.ComfyNode):
    """Several images as a list, sizes as they are."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_Collect", category="test",
            inputs=[io.Image.Input(f"image{i}", optional=i > 1) for i in range(1, 9)],
            outputs=[io.Image.Output("list", is_output_list=True), io.Image.Output("batch", is_output_list=True)],
        )  # fmt: skip

    @classmethod
    def execute(cls, **images):
        ordered = [images[f"image{i}"] for i in range(1, 9) if images.get(f"image{i}") is not None]
        same = len({image.shape for image in ordered}) == 1
        return io.NodeOutput(ordered, [torch.cat(ordered)] if same else ordered)


class Odd(io.ComfyNode):
    """Images that something upstream spoiled."""

    @classmethod
    def define_schema(cls):
        kinds = [
            "nan",
            "empty",
            "pixel",
            "rgba",
            "grey",
            "overshoot",
            "wild",
            "noise",
            "all nan",
            "black",
            "white",
            "long",
        ]
        return io.Schema(
            node_id="Test_Odd", category="test",
            inputs=[io.Combo.Input("kind", options=kinds), io.Int.Input("count", default=1), io.Int.Input("seed", default=0)],
            outputs=[io.Image.Output("image")],
        )  # fmt: skip

    @classmethod
    def execute(cls, kind, count, seed):
        if kind == "long":
            return io.NodeOutput(torch.rand(1, 8, 1, 3).expand(1, 8, count, 3))
        image = torch.rand(count, 64, 96, 3, generator=torch.Generator().manual_seed(seed))
        if kind == "nan":
            image[-1, 5, 5, 1] = float("nan")
        if kind == "all nan":
            image[:, 5, 5, 1] = float("nan")
        return io.NodeOutput(
            {
                "nan": image, "empty": image[:0], "pixel": image[:, :1, :1], "grey": image[..., :1],
                "rgba": torch.cat([image, torch.full_like(image[..., :1], 0.5)], dim=-1), "overshoot": image * 1.2 - 0.1,
                "wild": image * 255, "noise": image, "all nan": image, "black": image * 0, "white": image * 0 + 1,
            }[kind]
        )  # fmt: skip


class NoImages(io.ComfyNode):
    """An empty list of images, as loaders of empty folders give it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_NoImages", category="test", inputs=[],
            outputs=[io.Image.Output("images", is_output_list=True)],
        )  # fmt: skip

    @classmethod
    def execute(cls):
        return io.NodeOutput([])


class Latents(io.ComfyNode):
    """Latents and masks whose values identify their image."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_Attachments", category="test",
            inputs=[io.Int.Input("count"), io.Int.Input("masks", default=0, optional=True)],
            outputs=[io.Latent.Output("latents"), io.Mask.Output("masks")],
        )  # fmt: skip

    @classmethod
    def execute(cls, count, masks=0):
        number = torch.arange(count).float()
        noise = (torch.arange(masks) / max(masks, 1)).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return io.NodeOutput(
            {
                "samples": number.view(-1, 1, 1, 1).expand(-1, 4, 2, 2).clone(),
                **({"noise_mask": noise} if masks else {}),
            },
            number.view(-1, 1, 1).expand(-1, 8, 8).clone() / 16,
        )


class TinyDiffusion(io.ComfyNode):
    """An SD 1.x network, a few channels wide, and a TAESD autoencoder, both with seeded random weights."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_TinyDiffusion", category="test", inputs=[],
            outputs=[io.Model.Output("model"), io.Conditioning.Output("conditioning"), io.Vae.Output("vae")],
        )  # fmt: skip

    @classmethod
    def execute(cls):
        import comfy.model_patcher
        import comfy.sd
        import comfy.supported_models
        import comfy.taesd.taesd

        def seeded(module, seed):
            generator = torch.Generator().manual_seed(seed)
            for name, parameter in module.named_parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                values = torch.randn(parameter.shape, generator=generator) / max(fan_in, 1) ** 0.5
                scale = 1.0 if parameter.ndim > 1 else 0.1
                offset = 1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0
                parameter.data = (values * scale + offset).to(parameter.dtype)
            return module

        settings = {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1, "context_dim": 16, "num_heads": 4, "num_head_channels": -1,
            "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None, "legacy": False,
            "use_temporal_attention": False, "dtype": torch.float32,
        }  # fmt: skip
        config = comfy.supported_models.SD15(settings)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        seeded(model.diffusion_model, 1)
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
        auto = comfy.taesd.taesd.TAESD(latent_channels=4)
        seeded(auto, 2)
        states = {**auto.state_dict(), "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
        vae = comfy.sd.VAE(sd=states)
        context = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(3))
        return io.NodeOutput(patcher, [[context, {}]], vae)


class GradedDiffusion(io.ComfyNode):
    """A diffusion model that makes one image, more or less blurred as the seed has it, and knows the best denoiser.

    For finitely many images that is their mean, weighted by how well each explains the noisy input.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_GradedDiffusion", category="test", inputs=[],
            outputs=[io.Model.Output("model"), io.Conditioning.Output("conditioning"), io.Vae.Output("vae")],
        )  # fmt: skip

    @classmethod
    def execute(cls):
        tiny, conditioning, _ = TinyDiffusion.execute().result
        side, apart = 16, 0.5
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(4)).round()
        levels = [image]
        for _ in range(31):
            levels.append(
                torch.nn.functional.avg_pool2d(levels[-1], 3, 1, 1, count_include_pad=False) * 0.2 + levels[-1] * 0.8
            )
        pixels = torch.cat(levels)
        clean = torch.cat([pixels - 0.5, pixels[:, :1] * 0], dim=1) * apart

        def denoise(_, args):
            x, sigma = args["input"], args["timestep"].view(-1, 1)
            fit = -(x.flatten(1)[:, None] - clean.flatten(1)).square().sum(dim=2) / (2 * sigma**2)
            return (fit.softmax(dim=1) @ clean.flatten(1)).view_as(x)

        model = tiny.clone()
        model.set_model_unet_function_wrapper(denoise)

        class Vae:
            def decode(self, samples):
                shown = (samples[:, :3] * 0.18215 / apart + 0.5).clamp(0, 1)
                return torch.nn.functional.interpolate(shown, scale_factor=8).movedim(1, -1)

        return io.NodeOutput(model, conditioning, Vae())


class PhotographDiffusion(io.ComfyNode):
    """For the templates' thumbnails: as GradedDiffusion, but its images are the photographs sample*.png of the input folder.

    A latent stands for the photograph whose pattern it is nearest to.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_PhotographDiffusion", category="test", inputs=[],
            outputs=[io.Model.Output("model"), io.Conditioning.Output("conditioning"), io.Vae.Output("vae")],
        )  # fmt: skip

    @classmethod
    def execute(cls):
        import folder_paths
        import numpy as np
        from PIL import Image

        tiny, conditioning, _ = TinyDiffusion.execute().result
        files = sorted(pathlib.Path(folder_paths.get_input_directory()).glob("sample*.png"))
        photographs = [torch.from_numpy(np.asarray(Image.open(file).convert("RGB")) / 255.0).float() for file in files]
        generator = torch.Generator().manual_seed(5)
        patterns = [torch.randn(4, 64, 64, generator=generator) for _ in files]

        def distances(latents):
            resized = torch.nn.functional.interpolate(torch.stack(patterns), latents.shape[-2:])
            return torch.cdist(latents.flatten(1), resized.flatten(1)), resized

        def denoise(_, args):
            far, resized = distances(args["input"])
            weights = (-far.square() / (2 * args["timestep"].view(-1, 1) ** 2)).softmax(dim=1)
            return (weights @ resized.flatten(1)).view_as(args["input"])

        model = tiny.clone()
        model.set_model_unet_function_wrapper(denoise)

        class Vae:
            def decode(self, samples):
                height, width = samples.shape[-2] * 8, samples.shape[-1] * 8
                nearest = distances(samples * 0.18215)[0].argmin(dim=1).tolist()
                shown = torch.stack([photographs[index] for index in nearest]).movedim(-1, 1)
                return (
                    torch.nn.functional.interpolate(shown, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)
                )

            def encode(self, pixels):
                photographs.append(pixels[0, :512, :512, :3])  # one more that it knows
                patterns.append(torch.randn(4, 64, 64, generator=generator))
                return patterns[-1][None] / 0.18215

        return io.NodeOutput(model, conditioning, Vae())


class Bundle(io.ComfyNode):
    """What other packs hand on for `count` images: one per image in several forms, and one for all."""

    @classmethod
    def define_schema(cls):
        outputs = [io.String.Output("captions", is_output_list=True), io.Float.Output("list_in_float")]
        return io.Schema(
            node_id="Test_Bundle", category="test", inputs=[io.Int.Input("count")],
            outputs=[*outputs, io.Custom("SEGS").Output("segs"), io.Conditioning.Output("conditioning"), io.String.Output("one")],
        )  # fmt: skip

    @classmethod
    def execute(cls, count):
        numbers = torch.arange(count).float()
        return io.NodeOutput(
            [f"caption {i}" for i in range(count)],
            [i / 10 for i in range(count)],
            ((64, 64), [f"region {i}" for i in range(count)]),
            [[numbers.view(-1, 1, 1), {"pooled_output": numbers.view(-1, 1) * 2}]],
            "one for all",
        )


class CountingVae(io.ComfyNode):
    """A VAE that counts, before each decoding, how many images of its size are in memory."""

    counts: typing.ClassVar = {}

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_CountingVae", category="test", inputs=[io.Vae.Input("vae"), io.String.Input("run")],
            outputs=[io.Vae.Output("vae")],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, run):
        cls.counts[run] = []

        class Counting:
            def decode(self, samples):
                gc.collect()
                shape = (samples.shape[2] * 8, samples.shape[3] * 8, 3)
                found = [x for x in gc.get_objects() if type(x) is torch.Tensor and tuple(x.shape[-3:]) == shape]
                storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}
                CountingVae.counts[run].append(sum(storages.values()) / (4 * math.prod(shape)))
                return vae.decode(samples)

        return io.NodeOutput(Counting())


class FaultyVae(io.ComfyNode):
    """A VAE that fails at some of the images, counted over all decodings."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_FaultyVae", category="test",
            inputs=[io.Vae.Input("vae"), *[io.String.Input(name) for name in ("fault", "at", "run")]],
            outputs=[io.Vae.Output("vae")],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, fault, at, run):  # noqa: ARG003  the run makes it new
        bad, done = {int(part) for part in at.split(",")}, []

        class Faulty:
            def decode(self, samples):
                images = vae.decode(samples)
                hit = [i for i in range(len(images)) if len(done) + i in bad]
                done.extend(range(len(images)))
                if hit and fault == "memory":
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
                images[hit] = float("nan") if fault == "nan" else 0.0
                return images

        return io.NodeOutput(Faulty())


class Counts(io.ComfyNode):
    """What CountingVae counted."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Test_Counts", category="test", inputs=[io.AnyType.Input("after"), io.String.Input("run")],
            outputs=[], is_output_node=True, not_idempotent=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, after, run):  # noqa: ARG003  it comes after
        return io.NodeOutput(ui={"counts": CountingVae.counts[run]})


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [
            Probe, Numbers, Collect, Odd, Latents, TinyDiffusion, GradedDiffusion, Bundle, CountingVae, Counts, NoImages,
            FaultyVae, PhotographDiffusion,
        ]  # fmt: skip


async def comfy_entrypoint():
    return Extension()
