"""Many people: a folder of photos each -> identities and LoRAs of all, with every core, or on a cluster.

models.py    which models, told so that other processes can open them too
people.py    who there is, and what their files are called
journal.py   what is finished, and the report
faces.py     stage 1: a photo -> what the encoders want of it
workers.py   processes for stage 1
encode.py    stage 2: photos -> identities, CLIP and resampler in batches
write.py     stage 3: identities -> files, one pass over the basis for a group of people
run.py       the stages in a row on this machine
on_ray.py    the same on Ray Data
"""
