"""The live view as a moving picture: docs/record.py."""

from xml.etree import ElementTree

from rich.text import Text

from docs.record import FRAMES, moving

SVG = "{http://www.w3.org/2000/svg}"


def test_a_moving_picture_shows_each_frame_in_turn() -> None:
    pictures = [[Text(f"step-{number}", style="bold"), Text("C 6e11")] for number in range(20)]
    root = ElementTree.fromstring(moving(pictures, "run"))  # noqa: S314 - our own
    frames = [group for group in root.iter(f"{SVG}g") if group.get("class") == "frame"]
    words = ["".join(frame.itertext()) for frame in frames]
    assert len(frames) == FRAMES and "step-0" in words[0] and "step-19" in words[-1]
    assert [frame.get("style") for frame in frames][:2] == ["animation-delay:0s", "animation-delay:2s"]
    style = "".join(root.find(f"{SVG}style").itertext())  # type: ignore[union-attr]
    assert "@font-face" not in style and all(f".f{number}-r1 " in style for number in range(FRAMES))
