"""The frames of videos, and what the head of a file says."""

import cv2
import numpy as np
import pytest

from soft_teacher.data.video_files import VideoError, VideoFacts, read_video_facts, video_frames


def test_the_frames_come_in_their_order_with_the_facts_of_the_file(tmp_path):
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), (50 * i, 0, 0), dtype=np.uint8))
    writer.release()
    assert read_video_facts(path) == VideoFacts((48, 64), 10.0, 5)
    frames = list(video_frames(path))
    assert [x.shape for x in frames] == [(48, 64, 3)] * 5
    # Blue, the first channel of BGR, but for compression.
    np.testing.assert_allclose(
        [x.mean((0, 1)) for x in frames], [(50 * i, 0, 0) for i in range(5)], atol=4
    )


def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "nowhere.mp4"):
        with pytest.raises(VideoError, match=rf"Cannot read the video .*{name}"):
            read_video_facts(str(tmp_path / name))
