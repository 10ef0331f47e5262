"""What people look at and what other tools read: pictures, label files, COCO, YOLO."""
