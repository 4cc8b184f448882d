// SPDX-License-Identifier: GPL-2.0
/*
 * What vendors' drivers say when a card is lost, said on demand: lines of NVIDIA's driver in the
 * kernel log, and the DRM event of a device that its driver has given up (Linux 6.15).
 */
#include <linux/device.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>

#include "vgpu_sim.h"

/* Tests read all parameters and write them back; nothing is said for an empty one. */
static int say_nothing(char *buffer, const struct kernel_param *kp)
{
	return 0;
}

static int say_line(const char *text, const struct kernel_param *kp)
{
	if (!sysfs_streq(text, ""))
		pr_err("NVRM: %s\n", text);
	return 0;
}

static const struct kernel_param_ops nvrm_ops = { .set = say_line, .get = say_nothing };
module_param_cb(nvrm, &nvrm_ops, NULL, 0644);
MODULE_PARM_DESC(nvrm, "a line that NVIDIA's driver writes to the kernel log now");

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define make_class(name) class_create(name)
#else
#define make_class(name) class_create(THIS_MODULE, name)
#endif

/* The DRM core is not loaded in the lab: its class is made for the length of the event. */
static int tell_wedged(struct pci_dev *pdev, const char *methods)
{
	char wedged[64];
	char *environment[] = { wedged, NULL };
	struct class *class = make_class("drm");
	struct device *card;
	int ret;

	if (IS_ERR(class))
		return PTR_ERR(class);
	card = device_create(class, &pdev->dev, MKDEV(0, 0), NULL, "card9");
	if (IS_ERR(card)) {
		class_destroy(class);
		return PTR_ERR(card);
	}
	snprintf(wedged, sizeof(wedged), "WEDGED=%s", methods);
	ret = kobject_uevent_env(&card->kobj, KOBJ_CHANGE, environment);
	device_unregister(card);
	class_destroy(class);
	return ret;
}

/* "0000:01:00.0 rebind,bus-reset" */
static int say_wedged(const char *text, const struct kernel_param *kp)
{
	unsigned int domain, bus, slot, function;
	struct pci_dev *pdev;
	char methods[48];
	int ret;

	if (sysfs_streq(text, ""))
		return 0;
	if (sscanf(text, "%x:%x:%x.%u %47s", &domain, &bus, &slot, &function, methods) != 5)
		return -EINVAL;
	pdev = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, function));
	if (!pdev)
		return -ENODEV;
	ret = tell_wedged(pdev, methods);
	pci_dev_put(pdev);
	return ret;
}

static const struct kernel_param_ops wedged_ops = { .set = say_wedged, .get = say_nothing };
module_param_cb(drm_wedged, &wedged_ops, NULL, 0644);
MODULE_PARM_DESC(drm_wedged, "FUNCTION METHODS: its DRM driver gives it up now");
