"""The phrases of phantom reports. A table, not code: phantom_report puts the sentences together.

Fields: ``{side}`` right | left | bilateral, ``{on_side}`` the right | the left | both sides, ``{place}``
the right upper lobe | both lungs, ``{where}`` RUL | bilat., ``{size}`` mm, ``{cm}``, ``{degree}`` mild |
moderate | severe, ``{volume}`` small | moderate | large, ``{number}`` a | two | ..., ``{s}`` of a plural,
``{are}`` is | are, ``{station}`` of nodes, ``{artery}``, ``{kind}`` and ``{a_kind}`` of device, in words
of the style. The first letter of a sentence is raised later.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How reports speak of one finding.

    Attributes:
        long: Full sentences that state it.
        terse: Telegraphic statements.
        abbreviated: Statements in abbreviations.
        nouns: Names of the finding, for sentences that negate or doubt it.
        short_nouns: The same, abbreviated.
        normal: Statements of the normal state that deny it without any of the names.
    """

    long: tuple[str, ...]
    terse: tuple[str, ...]
    abbreviated: tuple[str, ...]
    nouns: tuple[str, ...]
    short_nouns: tuple[str, ...]
    normal: tuple[str, ...] = ()


WORDINGS: dict[str, Wording] = {
    "medical_material": Wording(
        long=(
            "{a_kind} is in place.",
            "{a_kind} is seen, without signs of malposition.",
            "the patient carries {a_kind}.",
            "note is made of {a_kind}.",
        ),
        terse=("{kind} in situ.", "{kind} noted.", "status post implantation of {kind}."),
        abbreviated=("s/p {kind}.", "{kind} i.s.", "{kind} +."),
        nouns=("medical devices", "foreign material", "implanted device", "surgical material"),
        short_nouns=("devices", "hardware", "lines or tubes"),
    ),
    "cardiomegaly": Wording(
        long=(
            "the heart is {degree}ly enlarged, with a transverse diameter of {cm} cm.",
            "the cardiac silhouette is increased in size.",
            "there is {degree} cardiomegaly.",
            "heart size is above normal limits.",
        ),
        terse=("heart enlarged.", "{degree} cardiomegaly.", "increased cardiothoracic ratio."),
        abbreviated=("CMG, {degree}.", "CTR increased.", "heart enl., {cm} cm."),
        nouns=("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
        short_nouns=("CMG", "cardiomegaly"),
        normal=("heart size is normal.", "the heart is not enlarged.", "heart contour and size are natural."),
    ),
    "pericardial_effusion": Wording(
        long=(
            "there is a {volume} pericardial effusion measuring {size} mm.",
            "fluid of {size} mm thickness is seen in the pericardial space.",
            "the pericardial sac contains {volume} amounts of fluid.",
            "pericardial effusion reaching {size} mm was observed.",
        ),
        terse=("pericardial effusion, {size} mm.", "{volume} pericardial fluid.", "fluid around the heart."),
        abbreviated=("PCE {size} mm.", "pericard. eff., {volume}.", "PCE +, {volume}."),
        nouns=("pericardial effusion", "pericardial fluid", "fluid around the heart"),
        short_nouns=("PCE", "pericard. eff."),
        normal=("the pericardium is unremarkable.", "the pericardial space is dry."),
    ),
    "coronary_artery_wall_calcification": Wording(
        long=(
            "there are calcified plaques in the coronary arteries, mainly in the {artery} artery.",
            "{degree} coronary artery calcification is noted.",
            "calcific atheroma of the {artery} artery is observed.",
            "the walls of the coronary arteries are calcified.",
        ),
        terse=(
            "coronary calcification, {degree}.",
            "calcified {artery} artery.",
            "calcific coronary plaques.",
        ),
        abbreviated=("CAC {degree}.", "CAC +, {artery_short}.", "{artery_short} calcif."),
        nouns=("coronary artery calcification", "calcified coronary plaque", "coronary calcium"),
        short_nouns=("CAC", "cor. calcif."),
        normal=("the coronary arteries are free of calcium.",),
    ),
    "hiatal_hernia": Wording(
        long=(
            "there is a {volume} hiatal hernia.",
            "part of the stomach is herniated through the esophageal hiatus, {cm} cm in size.",
            "an intrathoracic stomach portion of {size} mm is seen behind the heart.",
            "a {volume} sliding hernia is present at the lower end of the esophagus.",
        ),
        terse=("{volume} hiatal hernia.", "hiatus hernia, {cm} cm.", "herniated stomach, retrocardiac."),
        abbreviated=("HH {cm} cm.", "HH, {volume}.", "hiat. hernia +."),
        nouns=("hiatal hernia", "hiatus hernia", "gastric herniation"),
        short_nouns=("HH", "hiat. hernia"),
        normal=("the esophageal hiatus is normal.", "the stomach lies below the diaphragm."),
    ),
    "lymphadenopathy": Wording(
        long=(
            "lymph nodes are enlarged, the largest in the {station} group with a short axis of {size} mm.",
            "there is mediastinal lymphadenopathy measuring up to {size} mm.",
            "lymph nodes of pathological size are observed, most prominent in the {station} station.",
            "multiple nodes with a short axis reaching {size} mm are seen in the mediastinum.",
        ),
        terse=(
            "enlarged {station} lymph nodes, {size} mm.",
            "mediastinal adenopathy.",
            "bulky nodes to {size} mm.",
        ),
        abbreviated=("LAP {station}, {size} mm.", "enl. LNs, {size} mm.", "mediast. LAP +."),
        nouns=(
            "lymphadenopathy",
            "enlarged lymph nodes",
            "mediastinal adenopathy",
            "nodes of pathological size",
        ),
        short_nouns=("LAP", "enl. LNs"),
        normal=("mediastinal nodes are within normal size limits.",),
    ),
    "emphysema": Wording(
        long=(
            "there is {degree} centrilobular emphysema, predominantly in the upper lobes.",
            "emphysematous changes are seen in both lungs.",
            "areas of parenchymal destruction with air cysts of up to {size} mm occupy the upper lobes.",
            "{degree} emphysematous destruction of the upper lobes is observed.",
        ),
        terse=(
            "{degree} emphysema.",
            "emphysematous upper lobes.",
            "bullous change to {size} mm, both apices.",
        ),
        abbreviated=("emph. {degree}, UL.", "CLE {degree}.", "bullae UL bilat, {size} mm."),
        nouns=("emphysema", "emphysematous change", "bullae"),
        short_nouns=("emph.", "CLE"),
    ),
    "lung_nodule": Wording(
        long=(
            "{number} nodule{s} measuring up to {size} mm {are} seen in {place}.",
            "{number} rounded solid lesion{s} of up to {size} mm {are} present in {place}.",
            "{place} contains {number} pulmonary nodule{s}, largest diameter {size} mm.",
            "{number} well-defined nodular densit{ies} ({size} mm) {are} noted in {place}.",
        ),
        terse=(
            "{number} nodule{s} in {place}, {size} mm.",
            "{size} mm pulmonary nodule{s}.",
            "solid focus, {size} mm.",
        ),
        abbreviated=(
            "{where} nod. {size} mm.",
            "{number_digit} SPN, {where}, {size} mm.",
            "ndl {size} mm {where}.",
        ),
        nouns=("pulmonary nodule", "lung nodules", "nodular lesion in the lungs"),
        short_nouns=("nod.", "SPN", "pulm. ndl"),
        normal=("the lungs are free of focal rounded lesions.",),
    ),
    "lung_opacity": Wording(
        long=(
            "ground-glass opacities are seen in {place}, up to {cm} cm.",
            "there are patchy areas of ground-glass attenuation in {place}.",
            "hazy increased density without obscured vessels is present in {place}.",
            "{number} areas of ground glass, the largest {size} mm, were observed in {place}.",
        ),
        terse=("ground glass, {place}.", "patchy ground-glass opacities.", "hazy infiltrates in {place}."),
        abbreviated=("GGO {where}.", "patchy GGO, {cm} cm.", "{where} GGOs, {number_digit}x."),
        nouns=("ground-glass opacity", "ground-glass attenuation", "hazy opacities"),
        short_nouns=("GGO", "gg opac."),
    ),
    "pleural_effusion": Wording(
        long=(
            "there is a {volume} pleural effusion on {on_side}, {size} mm deep.",
            "fluid is present in the pleural space on {on_side}, up to {cm} cm thick.",
            "{side} pleural effusion of {volume} volume was observed.",
            "{volume} amounts of {side} pleural fluid layer posteriorly.",
        ),
        terse=(
            "{volume} {side} pleural effusion.",
            "{side} pleural fluid, {size} mm.",
            "{side} hydrothorax.",
        ),
        abbreviated=("{side_short} PEff, {volume}.", "PEff {side_short} {cm} cm.", "pl. eff. {side_short}."),
        nouns=("pleural effusion", "pleural fluid", "fluid in the pleural space"),
        short_nouns=("PEff", "pl. eff."),
        normal=("the pleural spaces are dry.", "both costophrenic recesses are clear."),
    ),
    "consolidation": Wording(
        long=(
            "there is consolidation in {place} measuring {cm} cm, with air bronchograms.",
            "airspace disease is present in {place}.",
            "a consolidated area of {size} mm is observed in {place}.",
            "dense parenchymal infiltration with air bronchograms occupies part of {place}.",
        ),
        terse=(
            "consolidation, {place}.",
            "airspace disease, {cm} cm.",
            "consolidated area with air bronchograms.",
        ),
        abbreviated=("{where} consol.", "consol. {where}, {cm} cm.", "ASD {where}, air broncho. +."),
        nouns=("consolidation", "airspace disease", "consolidated lung", "pneumonic infiltration"),
        short_nouns=("consol.", "ASD"),
    ),
}

NEGATED = (
    "no {noun}.",
    "there is no evidence of {noun}.",
    "{noun}: not detected.",
    "no sign of {noun} was found.",
    "the examination is negative for {noun}.",
)
NEGATED_SHORT = ("no {noun}.", "{noun}: neg.", "w/o {noun}.", "{noun} -.", "{noun}: none.")
NEGATED_LIST = (
    "no {list}.",
    "there is no evidence of {list}.",
    "negative for {list}.",
    "neither {list} seen.",
)
UNCERTAIN = (
    "possible {noun}, cannot be excluded.",
    "{noun} cannot be ruled out.",
    "the appearance may represent {noun}; clinical correlation is recommended.",
    "questionable {noun}.",
    "findings are suspicious for, but not diagnostic of, {noun}.",
)
UNCERTAIN_SHORT = ("{noun}?", "poss. {noun}.", "DD {noun}.", "cannot r/o {noun}.", "equivocal for {noun}.")
DISTRACTORS = (
    "a {size} mm hypodense nodule is seen in the thyroid.",
    "degenerative changes of the thoracic spine.",
    "a {size} mm cyst is noted in the liver.",
    "cholelithiasis.",
    "technique: axial sections with thin reconstructions.",
    "comparison: none available.",
    "calcified granuloma in the spleen.",
    "trachea and main bronchi are patent.",
    "adrenal nodule of {size} mm, likely adenoma.",
    "the clinical question was infection.",
    "no fracture.",
    "hepatic steatosis is suspected.",
)
DISTRACTORS_SHORT = (
    "thyroid nod. {size} mm.",
    "DJD T-spine.",
    "liver cyst {size} mm.",
    "no fx.",
    "GB stones.",
    "comp.: none.",
    "tech.: thin axial recon.",
    "adrenals wnl.",
    "splenic granuloma, calcif.",
    "airways patent.",
)
NORMAL_IMPRESSIONS = ("no acute process.", "no urgent finding.", "stable examination.", "nothing acute.")
DEVICES: dict[str, tuple[str, ...]] = {
    "pacemaker": ("a pacemaker with its lead", "a cardiac pacing device", "a pulse generator on the {side}"),
    "port catheter": (
        "a central venous port",
        "a port catheter on the {side}",
        "an implanted venous access system",
    ),
    "sternal wires": ("a set of median sternotomy wires", "a row of sternal cerclage wires"),
    "spinal rods": ("a spinal fixation with rods and screws", "a posterior spinal instrumentation"),
    "chest tube": (
        "a {side}-sided chest tube",
        "a thoracic drain on the {side}",
        "an intercostal drainage catheter",
    ),
}
DEVICES_SHORT: dict[str, tuple[str, ...]] = {
    "pacemaker": ("pacemaker", "PM", "pacer"),
    "port catheter": ("port", "port-a-cath", "CV port"),
    "sternal wires": ("sternotomy wires", "sternal cerclage"),
    "spinal rods": ("spinal hardware", "spinal fusion"),
    "chest tube": ("chest drain", "chest tube", "thoracostomy tube"),
}
