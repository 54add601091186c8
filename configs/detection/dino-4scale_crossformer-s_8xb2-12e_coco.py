_base_ = "_base_/recipes/dino-4scale_8xb2-12e_coco.py"
