// ggml-vulkan uses three types of VK_EXT_layer_settings, which came with the headers of
// Vulkan 1.3.272. Debian 12 has 1.3.239: this file stands before its `vulkan.hpp`, takes
// that one in and adds the three. With newer headers it adds nothing.
//
// It is found by CPLUS_INCLUDE_PATH (`.cargo/config.toml`): after the folders that a build
// names, such as those of a Vulkan SDK, and before the system's own.
#pragma once

#include_next <vulkan/vulkan.hpp>

#ifndef VK_EXT_layer_settings
namespace VULKAN_HPP_NAMESPACE {

enum class LayerSettingTypeEXT { eBool32 = 0 };

// The layouts are those of VkLayerSettingEXT and VkLayerSettingsCreateInfoEXT.
struct LayerSettingEXT {
    const char *        pLayerName;
    const char *        pSettingName;
    LayerSettingTypeEXT type;
    uint32_t            valueCount;
    const void *        pValues;
};

struct LayerSettingsCreateInfoEXT {
    VkStructureType         sType = VkStructureType(1000496000);
    const void *            pNext = nullptr;
    uint32_t                settingCount;
    const LayerSettingEXT * pSettings;

    template <typename Settings>
    explicit LayerSettingsCreateInfoEXT(const Settings & settings)
        : settingCount(uint32_t(settings.size())), pSettings(settings.data()) {}
};

}  // namespace VULKAN_HPP_NAMESPACE
#endif
