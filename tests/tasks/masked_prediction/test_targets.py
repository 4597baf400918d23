import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parp_cli.models.speech.config import ARCHITECTURES, frames
from parp_cli.tasks.masked_prediction.targets import kmeans, mfcc_features, nearest


@pytest.mark.parametrize("samples", [400, 719, 720, 721, 1_039, 1_040, 16_000, 16_123, 31_999])
def test_one_mfcc_frame_for_each_frame_of_the_front_end(samples: int) -> None:
    wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    features = mfcc_features(wave, 16_000)
    assert features.shape == (frames(ARCHITECTURES["mini"], samples), 39)
    assert features.isfinite().all()


def test_mfccs_are_normalised_over_the_waveform() -> None:
    wave = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    features = mfcc_features(wave, 16_000)
    torch.testing.assert_close(features.mean(0), torch.zeros(39), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(39), atol=1e-3, rtol=0)
    torch.testing.assert_close(mfcc_features(0.5 * wave, 16_000)[:, 1:13], features[:, 1:13], atol=0.02, rtol=0)
    assert torch.equal(mfcc_features(wave, 16_000), features)  # no dither


def test_silence_is_finite() -> None:
    assert mfcc_features(torch.zeros(4_000), 16_000).isfinite().all()


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=50)
def test_nearest_against_all_distances(count: int, clusters: int, dimensions: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dimensions, generator=generator)
    centroids = torch.randn(clusters, dimensions, generator=generator)
    distances = torch.cdist(features, centroids)
    found = distances.gather(1, nearest(features, centroids)[:, None])[:, 0]
    torch.testing.assert_close(found, distances.min(1).values, atol=1e-4, rtol=1e-4)


def blobs(clusters: int = 5, each: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 50 * torch.eye(clusters)[:, :4] + 50 * torch.arange(clusters)[:, None]
    owners = torch.arange(clusters).repeat(each)
    return centres[owners] + torch.randn(len(owners), 4, generator=generator), owners


def test_separated_blobs_are_found() -> None:
    """Lloyd's algorithm may leave two blobs as one from an unlucky start, but not from each of a few."""
    features, owners = blobs()
    best = min((kmeans(features, 5, seed=seed) for seed in range(8)), key=lambda c: _inertia(features, c))
    found = nearest(features, best)
    pairs = set(zip(owners.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 5  # one cluster a blob and one blob a cluster
    for cluster in range(5):
        torch.testing.assert_close(best[cluster], features[found == cluster].mean(0), atol=1e-3, rtol=1e-4)


def test_iterations_bring_the_clusters_nearer() -> None:
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    inertias = [_inertia(features, kmeans(features, 20, seed=0, iterations=n)) for n in (0, 1, 5, 30)]
    assert inertias == sorted(inertias, reverse=True)


def test_the_seed_decides() -> None:
    features, _ = blobs()
    assert torch.equal(kmeans(features, 7, seed=1), kmeans(features, 7, seed=1))
    assert not torch.equal(kmeans(features, 7, seed=1, iterations=1), kmeans(features, 7, seed=2, iterations=1))


def test_a_cluster_without_frames_starts_again() -> None:
    features = torch.tensor([[0.0], [0.0], [0.0], [0.0], [9.0]])
    centroids = kmeans(features, 3, seed=0, iterations=50)
    assert centroids.isfinite().all()
    assert set(centroids.flatten().tolist()) <= {0.0, 9.0}


def _inertia(features: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(torch.cdist(features, centroids).min(1).values.square().sum())
