"""Files and arrays -> what ImageBind reads, bit for bit what the official preprocessing makes of them.

PREPROCESSING names this version of it: raise it when any output bit changes, for it is in the encoder's
fingerprint.
"""

import io
import math
import wave
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PREPROCESSING = 1

SIDE = 224
IMAGE_MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])[:, None, None]
IMAGE_STD = np.float32([0.26862954, 0.26130258, 0.27577711])[:, None, None]

SAMPLE_RATE = 16000
CLIP_SECONDS = 2
AUDIO_CLIPS, VIDEO_CLIPS = 3, 5
MEL_BINS, MEL_FRAMES = 128, 204
FRAME, HOP, FFT = 400, 160, 512  # 25 ms, 10 ms and the next power of two, at 16 kHz
AUDIO_MEAN, AUDIO_STD = -4.268, 9.138


# ---- images


def decode_image(data: bytes) -> Image.Image:
    """An RGB image from a file's bytes. Raises OSError (Pillow's) when they are no image or one cut short."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def image_array(image: Image.Image) -> np.ndarray:
    """(3, 224, 224) float32: short side to 224 (Pillow's bicubic), centre crop, CLIP's normalisation."""
    width, height = image.size
    if min(width, height) != SIDE:
        short = min(width, height)
        width, height = int(SIDE * width / short), int(SIDE * height / short)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE))).transpose(2, 0, 1)
    return (pixels / np.float32(255) - IMAGE_MEAN) / IMAGE_STD


# ---- clips of a longer file


def clip_starts(duration: float, clips: int) -> list[Fraction]:
    """Starts of `clips` clips of 2 s, evenly from 0 to duration - 2; all 0 for a shorter file. Seconds."""
    step = Fraction(max(duration - CLIP_SECONDS, 0)) / (clips - 1)
    return [step * clip for clip in range(clips)]


# ---- audio


def read_wav(data: bytes) -> tuple[Tensor, int]:
    """(channels, samples) float32 in [-1, 1) and the sample rate, of a 16-bit PCM WAV file's bytes.

    Raises ValueError or wave.Error for another encoding."""
    with wave.open(io.BytesIO(data)) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{8 * file.getsampwidth()}-bit samples; write it as 16-bit PCM")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return torch.from_numpy(samples.T.astype(np.float32) / 32768), file.getframerate()


@lru_cache(maxsize=8)
def _sinc_kernel(source: int, target: int) -> tuple[Tensor, int]:
    """Hann-windowed sinc filters (target, 1, taps), 6 zero crossings, roll-off 0.99; their half width."""
    cutoff = min(source, target) * 0.99
    half = math.ceil(6 * source / cutoff)
    taps = torch.arange(-half, half + source, dtype=torch.float32)[None, None] / source
    phases = torch.arange(0, -target, -1, dtype=torch.float32)[:, None, None] / target
    t = ((phases + taps) * cutoff).clamp_(-6, 6)
    window = torch.cos(t * math.pi / 6 / 2) ** 2
    t = t * math.pi
    kernel = torch.where(t == 0, torch.ones(()), t.sin() / t)
    return kernel * (window * (cutoff / source)), half


def resample(waveform: Tensor, rate: int) -> Tensor:
    """(channels, samples) float32 at `rate` Hz -> the same at 16 kHz, by band-limited sinc interpolation."""
    if rate == SAMPLE_RATE:
        return waveform
    common = math.gcd(rate, SAMPLE_RATE)
    source, target = rate // common, SAMPLE_RATE // common
    kernel, half = _sinc_kernel(source, target)
    length = math.ceil(target * waveform.shape[1] / source)
    padded = F.pad(waveform, (half, half + source))
    return F.conv1d(padded[:, None], kernel, stride=source).transpose(1, 2).flatten(1)[:, :length]


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    """(257, 128) triangular filters, evenly spaced in mel from 20 Hz to 8 kHz, as Kaldi builds them."""

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    low, step = mel(20.0), (mel(SAMPLE_RATE / 2) - mel(20.0)) / (MEL_BINS + 1)
    bins = torch.arange(MEL_BINS)[:, None]
    left, centre, right = low + bins * step, low + (bins + 1.0) * step, low + (bins + 2.0) * step
    mels = 1127 * (1 + SAMPLE_RATE / FFT * torch.arange(FFT // 2) / 700).log()[None]
    filters = torch.minimum((mels - left) / (centre - left), (right - mels) / (right - centre)).clamp_(min=0)
    return F.pad(filters, (0, 1)).T


@lru_cache(maxsize=1)
def _hann() -> Tensor:
    return torch.hann_window(FRAME, periodic=False)


def log_mel(waveform: Tensor) -> Tensor:
    """Kaldi's filter-bank features, (128, frames) float32, of (samples >= 400,) at 16 kHz."""
    frames = waveform.unfold(0, FRAME, HOP)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    frames = (frames - 0.97 * previous) * _hann()
    power = torch.fft.rfft(F.pad(frames, (0, FFT - FRAME))).abs().pow(2.0)
    return (power @ _mel_filters()).clamp_(min=torch.finfo(torch.float32).eps).log().T


def audio_clips(waveform: Tensor, rate: int) -> Tensor:
    """(3, 1, 128, 204) float32, ImageBind's audio input, of a waveform (channels, samples) float32 at `rate`
    Hz.

    The first channel is heard, but the mean over all channels is taken off. The official code takes it off in
    place, so that overlapping clips lose it more than once; the published weights have always been used with
    that, so it is kept. Raises ValueError for less than 25 ms."""
    waveform = resample(waveform, rate).clone()
    if waveform.shape[1] < FRAME:
        raise ValueError(f"{waveform.shape[1]} samples at 16 kHz; at least {FRAME} (25 ms) are needed")
    clips = []
    for start in clip_starts(waveform.shape[1] / SAMPLE_RATE, AUDIO_CLIPS):
        clip = waveform[:, int(start * SAMPLE_RATE) : int((start + CLIP_SECONDS) * SAMPLE_RATE)]
        clip -= clip.mean()
        clips.append(_mel_input(clip))
    return torch.stack(clips)


def audio_clip(waveform: Tensor, rate: int) -> Tensor:
    """(1, 128, 204) float32 of one clip of at most 2 s: what `audio_clips` makes of it where no clips overlap.

    waveform (channels, samples) float32 at `rate` Hz: the first channel is heard, the mean over all taken off.
    A shorter clip is padded with zeros behind its mel frames. Raises ValueError for less than 25 ms, more than
    2 s, or samples that are not finite."""
    if not torch.isfinite(waveform).all():
        raise ValueError("its samples are not finite numbers")
    clip = resample(waveform, rate).contiguous()  # a mean over a view with gaps adds up in another order
    if not FRAME <= clip.shape[1] <= CLIP_SECONDS * SAMPLE_RATE:
        raise ValueError(
            f"{clip.shape[1]} samples at 16 kHz; {FRAME} (25 ms) to {CLIP_SECONDS * SAMPLE_RATE} are heard"
        )
    return _mel_input(clip - clip.mean())


def heard(samples: int, rate: int) -> bool:
    """Whether a clip of so many samples fills one window of 25 ms: less has no spectrum, and is no clip."""
    return math.ceil(samples * SAMPLE_RATE / rate) >= FRAME


def _mel_input(clip: Tensor) -> Tensor:
    mel = log_mel(clip[0])
    mel = F.pad(mel, (0, MEL_FRAMES - mel.shape[1]))[None]
    return (mel - AUDIO_MEAN) / AUDIO_STD


# ---- video


def clip_frames(duration: float, fps: float, frames: int) -> list[tuple[int, int]]:
    """First and last frame of each of the 5 clips of a video: what ImageBind sees of it.

    duration in seconds, frames: how many the video has."""
    found = []
    for start in clip_starts(duration, VIDEO_CLIPS):
        end = min(math.ceil(fps * (start + CLIP_SECONDS)), frames)
        found.append((min(math.ceil(fps * start), end - 1), end - 1))
    return found


def video_clips(frames: Tensor) -> Tensor:
    """(15, 3, 2, 224, 224) float32, ImageBind's video input, of (5, 2, H, W, 3) uint8: the frames of
    `clip_frames`.

    Bilinear to a short side of 224 (without antialias), then three crops along the long side."""
    height, width = frames.shape[2:4]
    long = math.floor(max(height, width) / min(height, width) * SIDE)
    size = (long, SIDE) if width < height else (SIDE, long)
    mean, std = (torch.from_numpy(values)[..., None] for values in (IMAGE_MEAN, IMAGE_STD))
    clips = []
    for pair in frames:
        clip = F.interpolate(pair.permute(3, 0, 1, 2) / 255.0, size=size, mode="bilinear", align_corners=False)
        clip = (clip - mean) / std
        for offset in (0, math.ceil((long - SIDE) / 2), long - SIDE):
            clips.append(clip.narrow(2 if width < height else 3, offset, SIDE))
    return torch.stack(clips)
