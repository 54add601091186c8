"""The versions that the project is installed and tested with, and why: for setup.py and the set-up.

setuptools: to build, onedl-mmcv 2.3.6 asks for 80, while torch 2.1.2's extension builder imports
`packaging` from `pkg_resources`, where it no longer is from 70 on. To run, the libraries import
`pkg_resources`, which 81 warns about and 82 no longer has. Python 3.11's own is 65.5.

mmcv is compiled against the torch that is installed, so without build isolation, and what its
setup.py imports (`BUILD`) has to be there beforehand. numpy stays in the series that torch and the
libraries were compiled for (2.x or 1.x), and below 2.3, which OpenCV 4.12 does not take.
"""

BUILD = ["wheel", "ninja", "psutil"]

STACKS = {
    "onedl": {
        "extra": "onedl",  # of setup.py
        "torch": ["torch==2.11.0", "torchvision==0.26.0"],
        "base": ["numpy>=2.1,<2.3", "setuptools>=80,<81", *BUILD],
        "mmcv": "onedl-mmcv==2.3.6",
        "libraries": [
            "onedl-mmengine==0.10.12",
            "onedl-mmdetection==3.5.1",
            "onedl-mmsegmentation==1.4.2",
            "onedl-mmpretrain==1.3.6",
        ],
    },
    "openmmlab": {
        "extra": "openmmlab",
        "torch": ["torch==2.1.2", "torchvision==0.16.2"],
        "base": ["numpy<2", "setuptools<70", *BUILD],
        "mmcv": "mmcv==2.1.0",
        "libraries": [
            "mmengine==0.10.7",
            "mmdet==3.3.0",
            "mmsegmentation==1.2.2",
            "mmpretrain==1.2.0",
            # mmsegmentation imports these two but does not ask for them.
            "ftfy",
            "regex",
        ],
    },
}
# The newest torch that was tried. Its headers are of C++20, and mmcv's setup.py asks for C++17.
STACKS["newest"] = {
    **STACKS["onedl"],
    "torch": ["torch==2.14.1", "torchvision==0.29.1"],
    "c++": "c++20",
}
