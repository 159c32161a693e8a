"""FID, KID, Inception Score and FVD: known answers, known properties, features on disk."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from demo_t2v.core.errors import UserError
from demo_t2v.data.video import write_video
from demo_t2v.evaluation.errors import EvaluationError
from demo_t2v.evaluation.features.cache import CachedExtractor
from demo_t2v.evaluation.features.i3d import I3D
from demo_t2v.evaluation.features.inception import InceptionV3
from demo_t2v.evaluation.features.rows import FeatureRows
from demo_t2v.evaluation.features.videomae import VideoMAE
from demo_t2v.evaluation.metrics.feature_sets import FeatureSets
from demo_t2v.evaluation.metrics.fid import FrechetInceptionDistance
from demo_t2v.evaluation.metrics.frechet import Moments, frechet_distance, jackknife
from demo_t2v.evaluation.metrics.fvd import FrechetVideoDistance
from demo_t2v.evaluation.metrics.inception_score import InceptionScore, inception_score
from demo_t2v.evaluation.metrics.kid import KernelInceptionDistance, polynomial_mmd
from demo_t2v.evaluation.metrics.metric import TooFewVideosError, VideoClip
from helpers.in_process import run


class Pixels:
    """An extractor whose features are the pixels of each frame."""

    name = "pixels"
    sha256 = "0" * 64

    def __init__(self, scale=1.0):
        self.preprocessing = {"scale": scale}
        self.calls = 0

    def __call__(self, frames):
        self.calls += 1
        return frames.reshape(len(frames), -1).astype(np.float32) * self.preprocessing["scale"]


def clip(name, frames=2, size=2, seed=0, fps=8.0):
    shape = (frames, size, size, 3)
    return VideoClip(
        name, np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8), fps
    )


def sets_of(generated, real=()):
    """Sets that hold the given features: a list of (n, D) for each video."""
    sets = FeatureSets(Pixels())
    for rows, videos in ((sets.generated, generated), (sets.real, real)):
        for features in videos:
            rows.append(np.asarray(features, np.float32))
    return sets


def fid(generated, real):
    return FrechetInceptionDistance(sets_of(generated, real)).compute()


def gaussian_videos(count, width, seed, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, scale, (count, 1, width))


def test_the_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(1)
    turned, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    some, others, shift = rng.uniform(0, 3, 50), rng.uniform(0, 3, 50), rng.normal(size=50)
    closed = (shift**2).sum() + ((some - others) ** 2).sum()
    covariances = [turned @ np.diag(scale**2) @ turned.T for scale in (some, others)]
    mean = rng.normal(size=50)
    distance = frechet_distance(mean, covariances[0], mean + shift, covariances[1])
    assert distance == pytest.approx(closed, abs=1e-6)


def test_two_by_two_covariances_that_do_not_commute():
    # tr(M^(1/2)) = sqrt(tr(M) + 2 sqrt(det(M))) for a matrix of two rows.
    some, others = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 2.0]])
    product = some @ others
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    zero = np.zeros(2)
    distance = frechet_distance(zero, some, zero, others)
    assert distance == pytest.approx(8 - 2 * root, abs=1e-12)


def test_covariances_of_rank_one():
    # C1 = a a^T and C2 = b b^T: the root of the product has the trace |a . b|.
    a, b, zero = np.array([3.0, 0, 4]), np.array([1.0, 2, 2]), np.zeros(3)
    distance = frechet_distance(zero, np.outer(a, a), zero, np.outer(b, b))
    assert distance == pytest.approx(25 + 9 - 2 * 11, abs=1e-9)


def test_moments_are_added_and_taken_away():
    vectors = np.random.default_rng(0).normal(5, 2, (30, 4))
    whole, part = Moments.of(vectors[:20]) + Moments.of(vectors[20:]), Moments.of(vectors[:7])
    rest = whole - part
    for moments, expected in ((whole, vectors), (rest, vectors[7:])):
        np.testing.assert_allclose(moments.mean, expected.mean(axis=0))
        np.testing.assert_allclose(moments.covariance, np.cov(expected, rowvar=False))


def test_a_set_against_itself_is_zero():
    videos = np.random.default_rng(0).normal(size=(25, 3, 16))
    figure = fid(videos, videos)
    assert figure.value == pytest.approx(0, abs=1e-9)
    assert figure.interval == pytest.approx((0, 0), abs=1e-9)
    assert figure.extra["extrapolated to infinite N"] == pytest.approx(0, abs=1e-7)
    assert (figure.count, figure.extra["real videos"]) == (25, 25)


def test_the_extrapolated_distance_is_nearer_to_the_truth():
    for seed in range(5):
        some = gaussian_videos(200, 60, seed)
        others = gaussian_videos(200, 60, seed + 100, scale=1.5, shift=0.2)
        truth = 60 * (0.5**2 + 0.2**2)
        figure = fid(some, others)
        extrapolated = figure.extra["extrapolated to infinite N"]
        assert abs(extrapolated - truth) < 0.5 * abs(figure.value - truth)


def test_the_line_over_one_over_n_meets_zero():
    # d(N) = 7 + 30 / N at N = 100 and at 90, which is left of 100 without a tenth.
    interval, extrapolated = jackknife(7 + 30 / 100, [7 + 30 / 90] * 10)
    assert extrapolated == pytest.approx(7)
    assert interval == pytest.approx((7.3, 7.3))


def test_the_interval_holds_the_expected_distance_in_most_samples():
    figures = [
        fid(gaussian_videos(80, 4, seed), gaussian_videos(80, 4, seed + 500, scale=2.0))
        for seed in range(40)
    ]
    expected = np.mean([figure.value for figure in figures])
    held = sum(figure.interval[0] <= expected <= figure.interval[1] for figure in figures)
    assert 34 <= held <= 40


def test_few_videos_are_said():
    figure = fid(gaussian_videos(9, 16, 1), gaussian_videos(30, 16, 2))
    assert figure.interval is None
    assert "extrapolated to infinite N" not in figure.extra
    assert "9 generated samples, no more than the 16 features" in figure.notes[0]
    assert figure.notes[1:] == ["no interval for fewer than 20 videos"]
    with pytest.raises(TooFewVideosError, match="1 real samples: a covariance takes 2 or more"):
        fid(gaussian_videos(9, 16, 1), gaussian_videos(1, 16, 2))


def test_the_kernel_distance_by_hand():
    # k(x, y) = (x y + 1)^3: pairs k(0, 1) = 1, k(2, 3) = 343; across 1, 1, 27 and 64.
    mmd = polynomial_mmd(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
    assert mmd == pytest.approx(1 + 343 - 2 * 93 / 4)


def test_the_kernel_distance_has_no_bias_and_tells_sets_apart():
    def kid(*sets):
        return KernelInceptionDistance(sets_of(*sets)).compute()

    some, others = gaussian_videos(60, 8, 1), gaussian_videos(60, 8, 2)
    low, high = kid(some, others).interval
    assert low < 0 < high
    # A set is not independent of itself: 1 / N of the pairs across have equal vectors.
    kernel = (some[:, 0] @ some[:, 0].T / 8 + 1) ** 3
    equal, other = kernel.trace() / 60, (kernel.sum() - kernel.trace()) / (60 * 59)
    assert kid(some, some).value == pytest.approx(-2 * (equal - other) / 60, abs=0.05)
    far = kid(some, gaussian_videos(60, 8, 2, shift=1.0))
    assert far.interval[0] > 1
    assert far.extra["frames of a subset"] == 30
    with pytest.raises(TooFewVideosError, match="3 frames of a kind"):
        kid(some, others[:3])


def test_inception_scores_by_hand():
    assert inception_score([np.zeros((8, 5))]) == pytest.approx(1)
    for classes in (2, 7):
        assert inception_score([np.eye(classes) * 1e4]) == pytest.approx(classes)
    # p = (3/4, 1/4) and (1/4, 3/4): each is 3/4 ln(3/2) + 1/4 ln(1/2) from their mean.
    logits = np.log([[0.75, 0.25], [0.25, 0.75]])
    expected = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert inception_score([logits[:1], logits[1:]]) == pytest.approx(expected)


def test_the_inception_score_of_splits():
    # Each video shows all three classes, so each split does.
    videos = [np.eye(3) * 100] * 20
    figure = InceptionScore(sets_of(videos), lambda features: features * 10).compute()
    assert figure.value == pytest.approx(3)
    assert figure.interval == pytest.approx((3, 3))
    assert "6 frames in a split" in figure.notes[0]
    with pytest.raises(TooFewVideosError, match="9 videos: 10 splits take 10 or more"):
        InceptionScore(sets_of(videos[:9]), lambda features: features).compute()


def test_metrics_of_one_network_share_its_features():
    extractor = Pixels()
    sets = FeatureSets(extractor, max_frames=3)
    metrics = [FrechetInceptionDistance(sets), KernelInceptionDistance(sets)]
    ramp = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 3), np.uint8)
    for real in (True, False):
        for number in range(4):
            for metric in metrics:
                metric.update(VideoClip(str(number), ramp, 8), real)
    assert extractor.calls == 8
    assert sets.generated.counts == sets.real.counts == [3] * 4
    # Frames 0, 4 and 8 of 9.
    assert sets.real.take([0, 1, 2])[:, 0].tolist() == [0, 4, 8]
    assert metrics[0].depends_on()["frames of a video"] == 3
    assert metrics[0].compute().value == pytest.approx(0, abs=1e-9)


def test_memory_does_not_grow_with_the_videos():
    def peak(videos):
        rows = FeatureRows()
        features = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
        tracemalloc.start()
        for _ in range(videos):
            rows.append(features)
        for part in rows.chunks(range(videos)):
            Moments.of(part)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    # 1,600 videos more have 6.5 MB of features.
    assert peak(2000) - peak(400) < 0.2e6


def test_features_that_are_no_numbers_or_another_width():
    rows = FeatureRows()
    rows.append(np.ones((1, 3), np.float32))
    with pytest.raises(EvaluationError, match="width 4, the videos before 3"):
        rows.append(np.ones((1, 4), np.float32))
    with pytest.raises(EvaluationError, match="no finite numbers"):
        rows.append(np.full((1, 3), np.nan, np.float32))


def test_cached_features_are_the_same_without_the_network(tmp_path):
    clips = [clip(str(number), seed=number) for number in range(4)]
    first = Pixels()
    features = [CachedExtractor(first, tmp_path)(one.frames) for one in clips]
    again = Pixels()
    cached = CachedExtractor(again, tmp_path)
    for one, expected in zip(clips, features, strict=True):
        np.testing.assert_array_equal(cached(one.frames), expected)
    assert (first.calls, again.calls) == (4, 0)
    # Other preprocessing, and other frames of the same bytes, are other features.
    other = Pixels(scale=2.0)
    assert (CachedExtractor(other, tmp_path)(clips[0].frames) == 2 * features[0]).all()
    assert cached(clips[0].frames.reshape(1, 4, 2, 3)).shape == (1, 24)
    assert (other.calls, again.calls) == (1, 1)


def test_a_stopped_evaluation_resumes(tmp_path):
    class Stopping(Pixels):
        def __call__(self, frames):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(frames)

    clips = [clip(str(number), seed=number) for number in range(5)]

    def measure(extractor):
        sets = FeatureSets(CachedExtractor(extractor, tmp_path))
        for one in clips:
            sets.add(one, real=False)

    with pytest.raises(KeyboardInterrupt):
        measure(Stopping())
    rest = Pixels()
    measure(rest)
    assert rest.calls == 2


def test_a_damaged_file_of_the_cache_is_computed_again(tmp_path):
    one = clip("one")
    expected = CachedExtractor(Pixels(), tmp_path)(one.frames)
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:-5])
    np.testing.assert_array_equal(CachedExtractor(Pixels(), tmp_path)(one.frames), expected)
    np.testing.assert_array_equal(np.load(file), expected)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file is in the way"):
        CachedExtractor(Pixels(), tmp_path / "file")


def test_fvd_takes_videos_of_one_size_and_says_other_frame_rates():
    fvd = FrechetVideoDistance(FeatureSets(Pixels()))
    assert fvd.name == "FVD (pixels)"
    for number in range(3):
        fvd.update(clip("real", seed=number), real=True)
        fvd.update(clip("mine", seed=number, fps=8.0 + number))
    problem = "b: has 3 frames of 2x2, real has 2 frames of 2x2; FVD takes one size: give --frames"
    with pytest.raises(EvaluationError, match=problem):
        fvd.update(clip("b", frames=3))
    with pytest.raises(EvaluationError, match="c: has 2 frames of 4x4"):
        fvd.update(clip("c", size=4), real=True)
    assert "frame rates from 8 to 10 a second" in fvd.compute().notes


class Network(torch.nn.Module):
    """The interface of StyleGAN-V's file: 4 features of a video (B, 3, F, H, W) in 0 to 255."""

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> torch.Tensor:
        if resize:
            x = torch.nn.functional.interpolate(
                x, size=[x.shape[2], 8, 8], mode="trilinear", align_corners=False
            )
        if rescale:
            x = x * 2 / 255 - 1
        assert x.shape[2] >= 2
        return x[:, :, :2].mean(dim=[3, 4]).flatten(1) if return_features else x


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.jit.script(Network()).save(str(file))
    return file


def test_i3d_gets_the_video_and_the_arguments_of_stylegan_v(i3d_file):
    network = I3D(i3d_file, "cpu")
    frames = np.zeros((4, 6, 6, 3), np.uint8)
    frames[1, ..., 2] = 255
    # Channels first, then time; black is -1 and white is 1.
    assert network(frames).tolist() == [[-1, -1, -1, -1, -1, 1]]
    assert len(network.sha256) == 64
    with pytest.raises(EvaluationError, match=r"i3d\.pt does not take 1 frames of 6x6"):
        network(frames[:1])


def test_files_that_are_no_network(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    for name in ("text.pt", "weights.pt"):
        with pytest.raises(EvaluationError, match=rf"{name}: is no TorchScript file; .*StyleGAN-V"):
            I3D(tmp_path / name)
    for kind in (I3D, InceptionV3):
        with pytest.raises(EvaluationError, match=r"none\.pt: cannot be read"):
            kind(tmp_path / "none.pt")
    with pytest.raises(EvaluationError, match=r"text.pt: holds no weights; .*torch-fidelity"):
        InceptionV3(tmp_path / "text.pt")


def test_inception_names_the_package_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(EvaluationError, match=r"pip install 'demo-t2v\[evaluation\]'"):
        InceptionV3(tmp_path / "weights.pt")


VIDEOMAE = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def test_videomae_gives_what_its_classifier_gets(tmp_path):
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

    network = VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE, use_mean_pooling=True))
    network.eval().save_pretrained(tmp_path / "classifier")
    frames = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)
    extractor = VideoMAE(tmp_path / "classifier", "cpu")
    features = extractor(frames)
    pixels = torch.from_numpy(frames).movedim(-1, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        logits = network(pixels).logits
        got = network.classifier(torch.from_numpy(features))
    torch.testing.assert_close(got, logits)
    assert extractor.preprocessing["resize"].startswith("16x16")

    settings = {"do_normalize": False}
    (tmp_path / "classifier" / "preprocessor_config.json").write_text(json.dumps(settings))
    assert VideoMAE(tmp_path / "classifier", "cpu").preprocessing["image_std"] == [1, 1, 1]

    with pytest.raises(EvaluationError, match="has 3 frames, VideoMAE takes 4: give --frames 4"):
        extractor(frames[:3])

    VideoMAEModel(VideoMAEConfig(**VIDEOMAE)).save_pretrained(tmp_path / "plain")
    assert VideoMAE(tmp_path / "plain", "cpu")(frames).shape == (1, 16)


def test_videomae_with_missing_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import VideoMAEConfig, VideoMAEModel

    with pytest.raises(EvaluationError, match="there is no such VideoMAE model"):
        VideoMAE(tmp_path / "none")
    with pytest.raises(EvaluationError, match=r"config\.json: is no JSON file that can be read"):
        VideoMAE(tmp_path)
    VideoMAEModel(VideoMAEConfig(**VIDEOMAE)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "encoder.layer.0.output.dense.weight"
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=lost):
        VideoMAE(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(EvaluationError, match="is no VideoMAE"):
        VideoMAE(tmp_path)


def write_folder(folder, count, seed):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        frames = rng.integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
        write_video(frames, folder / f"{number}", 8, "png")


def test_a_folder_is_measured_with_a_cache(tmp_path, i3d_file):
    from transformers import VideoMAEConfig, VideoMAEModel

    VideoMAEModel(VideoMAEConfig(**VIDEOMAE)).save_pretrained(tmp_path / "videomae")
    write_folder(tmp_path / "mine", 22, 1)
    write_folder(tmp_path / "real", 21, 2)

    def results():
        words = ["--real", "real", "--i3d", i3d_file, "--videomae", "videomae"]
        files = ["--feature-cache", "cache", "--out", "r.json"]
        done = run(tmp_path, "evaluate", "videos", "mine", *words, *files)
        assert (done.returncode, done.stderr) == (0, "")
        metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
        return {metric["name"]: metric for metric in metrics}

    first = results()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2 * 43
    for name in ("FVD (I3D)", "FVD (VideoMAE)"):
        figure = first[name]["figure"]
        assert figure["count"] == 22
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
        assert len(first[name]["depends_on"]["sha256"]) == 64
    for name in ("FID", "KID", "Inception Score", "JEDi"):
        assert first[name]["figure"] is None
        assert "https://" in first[name]["not_computed"]
    assert results() == first


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--i3d", "text.pt"], "text.pt: is no TorchScript file"),
        (["--i3d", "none.pt"], "none.pt: cannot be read (No such file or directory)"),
        (["--inception", "text.pt"], "text.pt: holds no weights"),
        (["--videomae", "/none"], "there is no such VideoMAE model"),
    ],
)
def test_bad_networks_are_one_line(tmp_path, words, problem):
    write_folder(tmp_path / "mine", 1, 1)
    (tmp_path / "text.pt").write_text("no network")
    done = run(tmp_path, "evaluate", "videos", "mine", *words)
    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


def test_statistics_equal_those_of_torch_fidelity():
    """It takes the extra `evaluation`."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid

    some = gaussian_videos(61, 24, 1).astype(np.float32)
    others = gaussian_videos(60, 24, 2, scale=1.5).astype(np.float32)
    sets, (first, second) = (
        sets_of(some, others),
        (torch.from_numpy(x[:, 0]) for x in (some, others)),
    )
    stats = (metric_fid.fid_features_to_statistics(features) for features in (first, second))
    (expected,) = metric_fid.fid_statistics_to_metric(*stats, verbose=False).values()
    assert FrechetInceptionDistance(sets).compute().value == pytest.approx(expected, rel=1e-6)
    expected = metric_kid.kid_features_to_metric(first, second, kid_subset_size=30, verbose=False)
    expected = expected["kernel_inception_distance_mean"]
    assert KernelInceptionDistance(sets).compute().value == pytest.approx(expected, rel=1e-5)
    expected = metric_isc.isc_features_to_metric(first)["inception_score_mean"]
    score = InceptionScore(sets, lambda features: features).compute()
    assert score.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_fid_equals_that_of_torch_fidelity(tmp_path, monkeypatch):
    """From frames, with random weights. It takes the extra `evaluation`."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3, metric_fid

    kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        source = "load_state_dict_from_url"
        patch.setattr(feature_extractor_inceptionv3, source, lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        blank = kind("inception-v3-compat", ["2048"])
    for weight in blank.parameters():
        if weight.ndim > 1:  # features of random weights vanish without a larger scale
            torch.nn.init.normal_(weight, std=1.6 * weight[0].numel() ** -0.5)
    torch.save(blank.state_dict(), tmp_path / "weights.pth")
    layers = ["2048", "logits_unbiased"]
    theirs = kind("theirs", layers, feature_extractor_weights_path=tmp_path / "weights.pth")
    network = InceptionV3(tmp_path / "weights.pth", "cpu")
    fid = FrechetInceptionDistance(FeatureSets(network))
    statistics = []
    for real in (False, True):
        batch = np.concatenate([clip("", 1, 40, seed + 50 * real).frames for seed in range(8)])
        fid.update(VideoClip("", batch // (1 + real), 8), real)
        features, logits = theirs(torch.from_numpy(batch // (1 + real)).movedim(-1, 1))
        np.testing.assert_allclose(network.logits(features.double().numpy()), logits, rtol=1e-3)
        statistics.append(metric_fid.fid_features_to_statistics(features))
    (expected,) = metric_fid.fid_statistics_to_metric(*statistics, verbose=False).values()
    assert expected > 1
    assert fid.compute().value == pytest.approx(expected, rel=1e-4)
