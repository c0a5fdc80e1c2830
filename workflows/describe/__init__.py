"""The shipped workflows, each described once; ../build.py writes them. Their names are what the template browser shows."""

from functools import partial

from .bases import another_base
from .comparison import comparison
from .control import instantid_pose, pose, restyle
from .faces import change_face, detailer, impact_detailer
from .portraits import demo, portrait, several_photos, slider, two_people

WORKFLOWS = {
    "01_portrait_from_photo": portrait,
    "02_portrait_from_several_photos": several_photos,
    "03_two_people": two_people,
    "04_pose_with_controlnet": pose,
    "05_pose_with_instantid_controlnet": instantid_pose,
    "06_face_detailer": detailer,
    "07_face_detailer_impact_pack": impact_detailer,
    "08_change_only_the_face": change_face,
    "09_image_to_image_and_style": restyle,
    "10_concept_slider": slider,
    "11_move_to_another_base": another_base,
    "21_compare_with_instantid": partial(comparison, "instantid"),
    "22_compare_with_ip_adapter_faceid": partial(comparison, "ip"),
    "23_compare_with_pulid": partial(comparison, "pulid"),
    "24_compare_all": partial(comparison, "instantid", "ip", "pulid"),
    "demo": demo,
}
